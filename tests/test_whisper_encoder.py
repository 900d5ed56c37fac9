"""Our steered encoder against transformers' WhisperEncoder, and one utterance against the same one in a batch."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.attention import Rows
from steermoe.encoders.whisper import WINDOWS, WhisperEncoder, pad_to_window
from steermoe.errors import UserError
from steermoe.masks import length_mask
from steermoe.steering import MoESteering

LENS = [120, 75, 301]


@pytest.fixture()
def feats():
    torch.manual_seed(0)
    return [torch.randn(length, 80) for length in LENS]


def encoder(tiny_bases, window):
    return WhisperEncoder.from_pretrained(str(tiny_bases / "whisper"), window=window, dtype="float32")


def test_full30_equals_transformers(tiny_bases, feats):
    from transformers import WhisperModel

    ours = encoder(tiny_bases, "full30")
    theirs = WhisperModel.from_pretrained(tiny_bases / "whisper").eval().encoder
    lens = torch.tensor(LENS)
    batch = pad_sequence(feats, batch_first=True)
    hidden, frames = ours(batch, lens)
    with torch.no_grad():
        expected = theirs(pad_to_window(batch, lens).transpose(1, 2)).last_hidden_state
    assert frames.tolist() == [1500] * 3
    assert torch.allclose(ours.final_norm(hidden), expected, atol=1e-5)


def test_crop_keeps_the_frames_of_the_real_audio(tiny_bases, feats):
    batch, lens = pad_sequence(feats, batch_first=True), torch.tensor(LENS)
    full, _ = encoder(tiny_bases, "full30")(batch, lens)
    crop, frames = encoder(tiny_bases, "crop")(batch, lens)
    assert torch.equal(full, crop) and frames.tolist() == [60, 38, 151]


@pytest.mark.parametrize("window", WINDOWS)
def test_alone_or_in_any_batch_the_result_is_the_same(tiny_bases, feats, window):
    model = encoder(tiny_bases, window)
    torch.manual_seed(1)
    steer = MoESteering(model.num_layers, model.dim, init_std=1.0)
    batch = pad_sequence(feats, batch_first=True, padding_value=1e4)  # padding must not matter, whatever it holds
    with torch.no_grad():
        together, lens = model(batch, torch.tensor(LENS), steer)
        for row, feat in enumerate(feats):
            alone, alone_len = model(feat[None], torch.tensor([len(feat)]), steer)
            assert alone_len[0] == lens[row]
            assert torch.allclose(together[row, : lens[row]], alone[0, : lens[row]], atol=2e-5)


def test_steering_comes_after_every_layer_and_feeds_the_next(tiny_bases, feats):
    seen = []

    def steer(layer, hidden):
        seen.append((layer, hidden.clone()))
        return hidden + 1.0

    model = encoder(tiny_bases, "trim")
    output, _ = model(feats[0][None], torch.tensor(LENS[:1]), steer)
    assert [layer for layer, _ in seen] == [0, 1]
    assert torch.allclose(model.layers[1](seen[0][1] + 1.0, Rows([60])), seen[1][1], atol=1e-6)
    assert torch.equal(output, seen[1][1] + 1.0)


def test_a_layer_over_rows_end_to_end_is_that_over_a_masked_batch(tiny_bases):
    layer = encoder(tiny_bases, "trim").layers[0]
    torch.manual_seed(0)
    batch, lens = torch.randn(3, 9, layer.fc1.in_features), torch.tensor([4, 9, 1])
    mask = length_mask(lens, 9)
    masked = layer(batch, mask[:, None, None])
    assert torch.allclose(layer(batch[mask][None], Rows(lens.tolist()))[0], masked[mask], atol=1e-6)


def test_over_30_seconds_is_refused(tiny_bases):
    with pytest.raises(UserError, match="30 s"):
        encoder(tiny_bases, "trim")(torch.zeros(1, 3001, 80), torch.tensor([3001]))


def test_unknown_window(tiny_bases):
    with pytest.raises(UserError, match="window"):
        encoder(tiny_bases, "half")


def test_fingerprint_follows_the_weights_not_the_type(tiny_bases, tmp_path):
    import tiny

    path = str(tiny_bases / "whisper")
    same = WhisperEncoder.from_pretrained(path, dtype="bfloat16").fingerprint
    tiny.make_whisper(tmp_path, seed=9)
    assert encoder(tiny_bases, "trim").fingerprint == same != WhisperEncoder.from_pretrained(str(tmp_path)).fingerprint
