"""Our Conformer against an independent computation, block by block; one utterance alone and in any batch."""

from __future__ import annotations

import json

import kaldiio
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from conformer_reference import hidden_after_each_block, sinusoid
from firered_writer import write_firered
from steermoe.encoders.conformer import (
    Conformer,
    ConformerEncoder,
    encoder_lens,
    relative_shift,
    relative_sinusoids,
    save_conformer,
)
from steermoe.encoders.firered import read_cmvn, read_firered
from steermoe.errors import UserError
from steermoe.masks import length_mask
from steermoe.steering import MoESteering

LENS = [53, 1, 97, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("firered")
    write_firered(path)
    return path


@pytest.fixture(scope="module")
def feats():
    """Like fbanks: a mean of about 12, which the checkpoint's CMVN takes away."""
    generator = torch.Generator().manual_seed(0)
    return [12 + 4 * torch.randn(length, 80, generator=generator) for length in LENS]


def encoder(folder, dtype="float32") -> ConformerEncoder:
    return ConformerEncoder.from_pretrained(str(folder), dtype=dtype)


def blocks_of(model, feats_bfm, lens_b, steer=lambda layer, hidden: hidden):
    """The hidden states after each block, before its steering, and the lengths."""
    seen = []

    def record(layer, hidden):
        assert layer == len(seen)
        seen.append(hidden)
        return steer(layer, hidden)

    with torch.no_grad():
        output, lens = model(feats_bfm, lens_b, record)
    assert torch.equal(output, steer(len(seen) - 1, seen[-1]))
    return seen, lens


def expected_blocks(folder, feats_fm, **more):
    firered = read_firered(folder)
    # the statistics in double, not as our reader rounds them
    stats = kaldiio.load_mat(str(folder / "cmvn.ark"))
    mean = stats[0, :-1] / stats[0, -1]
    istd = (stats[1, :-1] / stats[0, -1] - mean**2) ** -0.5
    return hidden_after_each_block(firered.tensors, mean, istd, feats_fm.numpy(), firered.sizes["heads"], **more)


def close(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.abs(ours.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("sizes", [{}, {"dim": 16, "heads": 2, "layers": 2, "feat_dim": 40, "kernel": 33}])
def test_every_block_equals_the_independent_computation(tmp_path, sizes):
    write_firered(tmp_path, seed=5, **sizes)
    torch.manual_seed(1)
    feats_fm = 12 + 4 * torch.randn(66, sizes.get("feat_dim", 80))
    seen, lens = blocks_of(encoder(tmp_path), feats_fm[None], torch.tensor([66]))
    expected = expected_blocks(tmp_path, feats_fm)
    assert lens.tolist() == [17] and len(seen) == len(expected) == sizes.get("layers", 3)
    assert all(close(ours[0], theirs) for ours, theirs in zip(seen, expected))


def test_every_block_in_a_padded_batch_whatever_the_padding_holds(folder, feats):
    model, lens_b = encoder(folder), torch.tensor(LENS)
    batch = pad_sequence(feats, batch_first=True, padding_value=float("nan"))
    frames = encoder_lens(lens_b)

    def disturb(layer, hidden):  # what steering leaves in the padding must not matter either
        return torch.where(length_mask(frames, hidden.shape[1])[..., None], hidden, 1e3)

    seen, lens = blocks_of(model, batch, lens_b, disturb)
    assert torch.equal(lens, frames)
    for row, feats_fm in enumerate(feats):
        expected = expected_blocks(folder, feats_fm)
        assert all(close(ours[row, : lens[row]], theirs) for ours, theirs in zip(seen, expected))


def test_steering_feeds_the_next_block(folder, feats):
    steering = MoESteering(3, 24, init_std=1.0, scale=0.5)

    def in_numpy(layer, hidden):
        with torch.no_grad():
            return steering(layer, torch.from_numpy(hidden[None]).float())[0].double().numpy()

    seen, _ = blocks_of(encoder(folder), feats[0][None], torch.tensor(LENS[:1]), steering)
    plain, _ = blocks_of(encoder(folder), feats[0][None], torch.tensor(LENS[:1]))
    expected = expected_blocks(folder, feats[0], steer=in_numpy)
    assert torch.equal(seen[0], plain[0]) and not torch.allclose(seen[1], plain[1], atol=1e-2)
    assert all(close(ours[0], theirs) for ours, theirs in zip(seen, expected))


def test_steering_learns_through_the_frozen_blocks(folder, feats):
    model, steering = encoder(folder), MoESteering(3, 24)
    batch = pad_sequence(feats, batch_first=True)
    hidden, lens = model(batch, torch.tensor(LENS), steering)
    (hidden * length_mask(lens, hidden.shape[1])[..., None]).pow(2).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in steering.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_parameters_of_the_published_size():
    with torch.device("meta"):
        model = Conformer(1280, 16, 20)
    assert sum(p.numel() for p in model.parameters()) == 710_543_968


def test_parameter_names_are_the_checkpoint_s(folder):
    model = encoder(folder)
    written = write_firered(folder.parent / "again")
    assert {name for name, _ in model.named_parameters()} == written.keys()
    assert all(torch.equal(parameter, written[name]) for name, parameter in model.named_parameters())


def test_lengths_by_hand():
    by_hand = {1: 1, 2: 1, 4: 1, 5: 2, 8: 2, 9: 3, 100: 25, 101: 26, 3000: 750}
    assert encoder_lens(torch.tensor(list(by_hand))).tolist() == list(by_hand.values())
    model = Conformer(8, 1, 2, kernel=3).eval()
    for frames in range(1, 18):  # the convolutions leave exactly as many frames as the length says
        hidden, lens = model(torch.zeros(1, frames, 80), torch.tensor([frames]))
        assert hidden.shape[1] == lens[0] == -(-frames // 4)


def test_relative_shift_by_hand():
    # columns are the distances 2, 1, 0, -1, -2 of a query from a key; query 0 is 0, -1, -2 away from keys 0, 1, 2
    by_distance = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34]])
    by_key = torch.tensor([[12, 13, 14], [21, 22, 23], [30, 31, 32]])
    assert torch.equal(relative_shift(by_distance[None, None])[0, 0], by_key)
    assert relative_shift(torch.ones(2, 3, 1, 1)).shape == (2, 3, 1, 1)


def test_sinusoids_of_far_distances():
    table = relative_sinusoids(6001, 8)
    assert table.shape == (12001, 8)
    for row, distance in ((0, 6000), (5999, 1), (6000, 0), (6001, -1), (12000, -6000)):
        assert np.allclose(table[row], sinusoid(distance, 8), atol=1e-3)


def test_over_200_seconds(tmp_path):
    """The published table of positions ends at 5000 frames; ours has no end."""
    write_firered(tmp_path, dim=4, layers=1, heads=1, kernel=3)
    frames = 20_500
    with torch.no_grad():
        hidden, lens = encoder(tmp_path)(torch.full((1, frames, 80), 12.0), torch.tensor([frames]))
    assert lens.tolist() == [5125] and hidden.shape == (1, 5125, 4) and torch.isfinite(hidden).all()


def test_cmvn_of_the_checkpoint_is_applied(folder, feats, tmp_path):
    mean, istd = read_cmvn(folder / "cmvn.ark")
    model = encoder(folder)
    assert torch.equal(model.cmvn_mean, mean) and torch.equal(model.cmvn_istd, istd)
    write_firered(tmp_path)
    plain_stats = np.stack([np.append(np.zeros(80), 100.0), np.append(np.full(80, 100.0), 0.0)])  # mean 0, variance 1
    kaldiio.save_mat(str(tmp_path / "cmvn.ark"), plain_stats)
    plain, lens_b = encoder(tmp_path), torch.tensor(LENS[:1])
    normalised = (feats[0] - mean) * istd
    assert torch.allclose(model(feats[0][None], lens_b)[0], plain(normalised[None], lens_b)[0], atol=1e-6)
    assert not torch.allclose(model(feats[0][None], lens_b)[0], plain(feats[0][None], lens_b)[0], atol=0.1)
    assert model.fingerprint != plain.fingerprint


def test_bfloat16_is_close_and_normalises_in_float32(folder, feats):
    lens_b = torch.tensor(LENS)
    batch = pad_sequence(feats, batch_first=True)
    exact, lens = encoder(folder)(batch, lens_b)
    model = encoder(folder, "bfloat16")
    assert model.cmvn_mean.dtype == model.cmvn_istd.dtype == torch.float32
    rough, _ = model(batch, lens_b)
    assert rough.dtype == torch.bfloat16 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    real = length_mask(lens, exact.shape[1])
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact)[real].norm() / exact[real].norm() < 0.05


def test_frozen_and_what_it_says_of_itself(folder):
    model = encoder(folder)
    assert (model.dim, model.num_layers, model.min_frames) == (24, 3, 0)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    hidden = torch.randn(2, 3, 24)
    assert torch.equal(model.final_norm(hidden), hidden)
    assert ConformerEncoder.frontend(str(folder)).name == "fbank80"


def test_fingerprint_follows_the_weights_not_the_type(folder, tmp_path):
    write_firered(tmp_path, seed=9)
    assert encoder(folder).fingerprint == encoder(folder, "bfloat16").fingerprint != encoder(tmp_path).fingerprint


def test_saved_and_read_again_it_is_the_same(folder, feats, tmp_path):
    model = encoder(folder)
    save_conformer(tmp_path / "saved", model, {"made_by": "test"})
    again = encoder(tmp_path / "saved")
    assert again.fingerprint == model.fingerprint
    lens_b = torch.tensor(LENS[:1])
    assert torch.equal(again(feats[0][None], lens_b)[0], model(feats[0][None], lens_b)[0])
    config = tmp_path / "saved" / "config.json"
    content = json.loads(config.read_text())
    assert content["made_by"] == "test" and content["sizes"]["dim"] == 24
    config.write_text(json.dumps(content | {"sizes": content["sizes"] | {"layers": 2}}))
    with pytest.raises(UserError, match=r"saved: model\.safetensors does not have the tensors"):
        encoder(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(UserError, match="saved: damaged"):
        encoder(tmp_path / "saved")


@pytest.mark.parametrize("base", ["whisper", "llm"])
def test_checkpoint_of_another_model_is_refused(tiny_bases, base):
    with pytest.raises(UserError, match=rf"{base}: no Conformer here: neither FireRedASR's model\.pth\.tar"):
        encoder(tiny_bases / base)


def test_folder_without_its_cmvn_is_refused(tmp_path):
    write_firered(tmp_path)
    (tmp_path / "cmvn.ark").unlink()
    with pytest.raises(UserError, match=r"cmvn\.ark: no such file"):
        encoder(tmp_path)


def test_impossible_sizes():
    for sizes in ((10, 1, 3), (8, 1, 2)):
        with pytest.raises(UserError, match="heads must divide the width, kernels are odd"):
            Conformer(*sizes, kernel=4 if sizes[0] == 8 else 3)


def test_registered():
    from steermoe.registry import resolve

    assert resolve("encoder", "conformer") is ConformerEncoder
