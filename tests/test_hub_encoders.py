"""Encoders of transformers under steering: the same numbers as transformers', whatever lies beside an utterance in the batch."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from steermoe.data.ark import ArkWriter, read_matrix
from steermoe.encoders.hub import conv_lengths
from steermoe.encoders.wav2vec2 import masked_channel_norm
from steermoe.errors import UserError
from steermoe.registry import resolve
from steermoe.steering import MoESteering

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # from transformers' WavLM
SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
SAMPLES = SIZES | dict(vocab_size=40, conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
LARGE = SAMPLES | dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
FAST = SIZES | dict(subsampling_conv_channels=8)
NORMALIZED = ("Wav2Vec2FeatureExtractor", dict(do_normalize=True))
RAW = ("Wav2Vec2FeatureExtractor", dict(do_normalize=False))
FBANK = ("SeamlessM4TFeatureExtractor", dict(padding_value=1))

# name: (encoder, transformers' class, its configuration, extractor, transformers itself masks padded batches correctly)
MODELS = {
    "w2v_bert": ("w2v_bert", "Wav2Vec2BertModel", SIZES | dict(conv_depthwise_kernel_size=7), FBANK, True),
    "w2v_bert_ctc": (
        "w2v_bert",
        "Wav2Vec2BertForCTC",
        SIZES | dict(vocab_size=40, position_embeddings_type="relative", add_adapter=True),
        FBANK,
        True,
    ),
    "conformer": ("wav2vec2_conformer", "Wav2Vec2ConformerModel", LARGE | dict(conv_depthwise_kernel_size=7), NORMALIZED, False),
    "conformer_rotary_ctc": (
        "wav2vec2_conformer",
        "Wav2Vec2ConformerForCTC",
        LARGE | dict(conv_depthwise_kernel_size=7, position_embeddings_type="rotary"),
        NORMALIZED,
        False,
    ),
    "parakeet": ("parakeet", "ParakeetEncoder", FAST, ("ParakeetFeatureExtractor", {}), True),
    "parakeet_ctc": (
        "parakeet",
        "ParakeetForCTC",
        dict(vocab_size=40, pad_token_id=39, encoder_config=FAST | dict(num_mel_bins=128)),
        ("ParakeetFeatureExtractor", dict(feature_size=128)),
        True,
    ),
    "wavlm_base": ("wavlm", "WavLMModel", SAMPLES, RAW, False),
    "wavlm_large_ctc": ("wavlm", "WavLMForCTC", LARGE, NORMALIZED, True),
    "hubert_base": ("hubert", "HubertModel", SAMPLES, RAW, False),
    "hubert_large_ctc": ("hubert", "HubertForCTC", LARGE, NORMALIZED, True),
    "hubert_batch_norm": ("hubert", "HubertModel", SAMPLES | dict(conv_pos_batch_norm=True), RAW, False),
    "wav2vec2_base_ctc": ("wav2vec2", "Wav2Vec2ForCTC", SAMPLES, RAW, False),
    "wav2vec2_large": ("wav2vec2", "Wav2Vec2Model", LARGE, NORMALIZED, True),
}
FAMILIES = ["w2v_bert", "conformer", "parakeet", "wavlm_base", "hubert_large_ctc", "wav2vec2_base_ctc"]
LENGTHS = [8000, 5123, 6401]


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """name -> (folder, transformers' model without its head), made when first asked for."""
    root, made = tmp_path_factory.mktemp("hub"), {}

    def get(name):
        if name not in made:
            _, architecture, settings, (extractor, options), _ = MODELS[name]
            torch.manual_seed(5)
            cls = getattr(transformers, architecture)
            network = cls(cls.config_class(**settings)).eval()
            with torch.no_grad():
                for tensor in network.parameters():
                    tensor.add_(torch.randn_like(tensor) * 0.05)
                for module in network.modules():
                    if isinstance(module, nn.BatchNorm1d):
                        module.running_mean.normal_()
                        module.running_var.uniform_(0.5, 2)
            network.save_pretrained(root / name)
            getattr(transformers, extractor)(**options).save_pretrained(root / name)
            base = network.encoder if architecture == "ParakeetForCTC" else getattr(network, network.base_model_prefix, network)
            base.adapter = None  # what follows the encoder in some checkpoints; not ours
            made[name] = root / name, base
        return made[name]

    return get


@functools.cache
def load(folder, name, dtype="float32"):
    return resolve("encoder", MODELS[name][0]).from_pretrained(str(folder), dtype=dtype)


def waves(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) * 0.1 + 0.01 for n in lengths]


def features(folder, name, lengths=LENGTHS):
    frontend = resolve("encoder", MODELS[name][0]).frontend(str(folder))
    feats = [frontend(wave) for wave in waves(lengths)]
    return feats, pad_sequence(feats, batch_first=True, padding_value=7.0), torch.tensor([len(feat) for feat in feats])


def extracted(name, batch, **extra):
    """What transformers' own extractor gives, of samples filled up to 10 ms where the model reads samples."""
    extractor, options = MODELS[name][3]
    if extractor == "Wav2Vec2FeatureExtractor":
        extra |= dict(padding=True, pad_to_multiple_of=160, return_attention_mask=True)
    extra |= dict(sampling_rate=16000, return_tensors="pt")
    return getattr(transformers, extractor)(**options)([wave.numpy() for wave in batch], **extra)


@pytest.mark.parametrize("name", MODELS)
def test_alone_and_in_a_batch_as_transformers_alone(hub, name):
    folder, network = hub(name)
    encoder = load(folder, name)
    _, feats_bfm, lens_b = features(folder, name)
    with torch.no_grad():
        together, frames_b = encoder(feats_bfm, lens_b)
        for row, wave in enumerate(waves()):
            inputs = extracted(name, [wave])
            if MODELS[name][3][0] == "Wav2Vec2FeatureExtractor":
                inputs = {"input_values": inputs["input_values"]}  # no mask: nothing is padding but the last row's zeros
            expected = network(**inputs).last_hidden_state[0]
            alone, alone_b = encoder(feats_bfm[row : row + 1, : lens_b[row]], lens_b[row : row + 1])
            frames = frames_b[row]
            assert frames == alone_b[0] == alone.shape[1]
            assert torch.allclose(encoder.final_norm(alone)[0], expected[:frames], atol=1e-5)
            assert torch.allclose(encoder.final_norm(together)[row, :frames], expected[:frames], atol=1e-5)
    assert alone.shape[2] == encoder.dim == 32 and encoder.num_layers == 3


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model[4]])
def test_padded_batch_as_transformers(hub, name):
    folder, network = hub(name)
    encoder = load(folder, name)
    _, feats_bfm, lens_b = features(folder, name)
    with torch.no_grad():
        ours, frames_b = encoder(feats_bfm, lens_b)
        inputs = extracted(name, waves())
        if "input_values" in inputs:  # the zeros that fill the last row of 160 are part of our utterance
            samples = torch.arange(inputs["input_values"].shape[1])
            inputs["attention_mask"] = (samples < 160 * lens_b[:, None]).long()
        theirs = network(**inputs).last_hidden_state
    for row, frames in enumerate(frames_b):
        assert torch.allclose(encoder.final_norm(ours)[row, :frames], theirs[row, :frames], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_steered_alone_or_in_a_batch(hub, name):
    folder, _ = hub(name)
    encoder = load(folder, name)
    torch.manual_seed(0)
    steering = MoESteering(3, 32, num_experts=4, scale=1.0, init_std=1.0)
    feats, feats_bfm, lens_b = features(folder, name)
    with torch.no_grad():
        plain, _ = encoder(feats_bfm, lens_b)
        together, frames_b = encoder(feats_bfm, lens_b, steering)
        for row, feat in enumerate(feats):
            alone, _ = encoder(feat[None], lens_b[row : row + 1], steering)
            assert torch.allclose(together[row, : frames_b[row]], alone[0], atol=2e-5)
    assert (together - plain).abs().max() > 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_what_steering_returns_is_all_that_the_next_layer_reads(hub, name):
    folder, _ = hub(name)
    encoder = load(folder, name)
    _, feats_bfm, lens_b = features(folder, name)
    fixed = torch.randn(32)
    calls = []

    def replace(layer, hidden):
        calls.append(layer)
        return fixed.expand_as(hidden).clone() if layer == 1 else hidden

    with torch.no_grad():
        first, _ = encoder(feats_bfm, lens_b, replace)
        second, _ = encoder(feats_bfm * 2 + 1, lens_b, replace)
        plain, _ = encoder(feats_bfm * 2 + 1, lens_b)
    assert calls == [0, 1, 2] * 2
    assert torch.allclose(first, second, atol=1e-5) and not torch.allclose(plain, second, atol=1e-2)
    assert not any(layer._forward_hooks for layer in encoder.layers)


@pytest.mark.parametrize("name", [*FAMILIES, "conformer_rotary_ctc"])
def test_gradients_reach_every_layers_steering_and_no_weight(hub, name):
    folder, _ = hub(name)
    encoder = load(folder, name)
    steering = MoESteering(3, 32, num_experts=2)
    _, feats_bfm, lens_b = features(folder, name)
    with torch.inference_mode():
        encoder(feats_bfm, lens_b, steering)  # decoding first must not spoil training after it
    hidden, _ = encoder(feats_bfm, lens_b, steering)
    (hidden * torch.randn_like(hidden)).sum().backward()
    assert (steering.experts.grad.abs().sum((1, 2)) > 0).all() and (steering.scales.grad != 0).all()
    assert not any(p.requires_grad for p in encoder.parameters()) and not any(m.training for m in encoder.modules())


@pytest.mark.parametrize("name", MODELS)
def test_frontend_is_transformers_extractor(hub, name):
    folder, _ = hub(name)
    feats, _, _ = features(folder, name)
    for feat, wave in zip(feats, waves()):
        batch = extracted(name, [wave])
        if "input_values" in batch:
            expected = batch["input_values"][0].reshape(-1, 160)
            assert len(expected) == -(-len(wave) // 160)
        else:
            expected = batch["input_features"][0][batch["attention_mask"][0].bool()]
        assert feat.dtype == torch.float32 and torch.allclose(feat, expected.float(), atol=1e-6)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("w2v_bert", ("w2v_bert_fbank80x2", 50, None)),
        ("parakeet", ("parakeet_logmel80", 100, 40000)),
        ("parakeet_ctc", ("parakeet_logmel128", 100, 40000)),
        ("hubert_base", ("samples160", 100, None)),
        ("hubert_large_ctc", ("samples160_normalized", 100, None)),
    ],
)
def test_the_frontends_name_rate_and_limit(hub, name, expected):
    frontend = resolve("encoder", MODELS[name][0]).frontend(str(hub(name)[0]))
    assert (frontend.name, frontend.frames_per_second, frontend.max_frames) == expected


def test_unusual_settings_are_in_the_features_name(hub, tmp_path):
    folder = shutil.copytree(hub("parakeet")[0], tmp_path / "copy")
    transformers.ParakeetFeatureExtractor(preemphasis=0.5, hop_length=200).save_pretrained(folder)
    frontend = resolve("encoder", "parakeet").frontend(str(folder))
    assert frontend.name == "parakeet_logmel80_hop_length200_preemphasis0.5" and frontend.frames_per_second == 80


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("samples", [1, 159, 400, 560])
def test_the_shortest_audio_gives_a_frame(hub, name, samples):
    folder, _ = hub(name)
    feats, feats_bfm, lens_b = features(folder, name, [samples, 8000])
    hidden, frames_b = load(folder, name)(feats_bfm, lens_b)
    assert frames_b[0] == 1 and torch.isfinite(feats[0]).all() and torch.isfinite(hidden).all()


@pytest.mark.parametrize("name", ["hubert_base", "wavlm_large_ctc"])
def test_samples_in_a_two_byte_ark_are_as_precise_as_16_bit_audio(hub, name, tmp_path):
    feats, _, _ = features(hub(name)[0], name, [16000])
    with ArkWriter(tmp_path / "a.ark", 3) as writer:
        offset = writer.write("utt", feats[0].numpy())
    error = np.abs(read_matrix(f"{tmp_path}/a.ark:{offset}") - feats[0].numpy()).max()
    assert error < 0.51 * float(feats[0].max() - feats[0].min()) / 65535


def test_lengths_of_convolutions():
    """wav2vec 2.0's seven convolutions read 400 samples for the first frame and 320 for each one more."""
    kernels, strides = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
    samples = torch.tensor([0, 5, 399, 400, 719, 720, 16000, 480000])
    assert conv_lengths(samples, kernels, strides).tolist() == [0, 0, 0, 1, 1, 2, 49, 1499]
    frames = torch.tensor([1, 2, 8, 9, 16, 17, 100, 3000])  # FastConformer: three times (L + 1) // 2
    assert conv_lengths(frames, [3, 3, 3], [2, 2, 2], padding=1).tolist() == [1, 1, 1, 2, 2, 3, 13, 375]


@pytest.mark.parametrize(
    "name, lengths", [("w2v_bert", [1, 2, 50]), ("parakeet", [1, 1, 7]), ("hubert_base", [0, 0, 24]), ("conformer", [0, 0, 24])]
)
def test_encoder_frames(hub, name, lengths):
    assert load(hub(name)[0], name).frame_lengths(torch.tensor([1, 2, 50])).tolist() == lengths


def test_norm_over_an_utterances_own_frames():
    norm = nn.GroupNorm(2, 2, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    values = torch.tensor([[[1.0, 3.0, 99.0], [0.0, 4.0, 99.0]], [[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]]])
    normed = masked_channel_norm(values, torch.tensor([2, 3]), norm)
    assert normed[0, :, :2].tolist() == [[-1.0, 1.0], [-1.0, 3.0]]
    assert torch.allclose(normed[1:], norm(values[1:]), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_low_precision_has_the_same_fingerprint(hub, name):
    folder, _ = hub(name)
    _, feats_bfm, lens_b = features(folder, name)
    full, low = load(folder, name), load(folder, name, "bfloat16")
    hidden, frames_b = low(feats_bfm, lens_b, MoESteering(3, 32))
    assert low.fingerprint == full.fingerprint and len(full.fingerprint) == 64
    assert hidden.dtype == torch.bfloat16 and torch.isfinite(hidden).all()
    reference = full(feats_bfm, lens_b)[0]
    valid = torch.arange(hidden.shape[1]) < frames_b[:, None]
    assert nn.functional.cosine_similarity(hidden.float(), reference, dim=-1)[valid].mean() > 0.98


def test_rotary_positions_stay_exact_in_low_precision(hub):
    encoder = load(hub("conformer_rotary_ctc")[0], "conformer_rotary_ctc", "bfloat16")
    assert encoder.network.encoder.embed_positions.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("wrong, folder, fitting", [("hubert", "w2v_bert", "w2v_bert"), ("w2v_bert", "parakeet_ctc", "parakeet")])
def test_another_architecture_is_refused_with_the_encoder_that_reads_it(hub, wrong, folder, fitting):
    path = str(hub(folder)[0])
    for load_it in (resolve("encoder", wrong).frontend, resolve("encoder", wrong).from_pretrained):
        with pytest.raises(UserError, match=f"{path} holds a .* model, not .*set encoder: {fitting}$"):
            load_it(path)


def test_a_whisper_and_a_language_model_are_refused(tiny_bases):
    with pytest.raises(UserError, match="'whisper'.*set encoder: whisper"):
        resolve("encoder", "wavlm").from_pretrained(str(tiny_bases / "whisper"))
    with pytest.raises(UserError, match="'llama'.*no encoder here reads it"):
        resolve("encoder", "wavlm").from_pretrained(str(tiny_bases / "llm"))


def test_files_that_are_not_there(hub, tmp_path):
    hubert = resolve("encoder", "hubert")
    folder = shutil.copytree(hub("hubert_base")[0], tmp_path / "copy")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config.json"):
        hubert.frontend(str(folder))
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="no safetensors weights that can be read"):
        hubert.from_pretrained(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights.*save_pretrained"):
        hubert.from_pretrained(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        hubert.from_pretrained(str(folder))


def test_missing_and_misshapen_weights(hub, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(hub("parakeet_ctc")[0], tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    lost = "encoder.layers.2.norm_out.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the weights layers.2.norm_out.weight .1 in all"):
        resolve("encoder", "parakeet").from_pretrained(str(folder))
    save_file(tensors | {lost: torch.zeros(5)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the weights layers.2.norm_out.weight .1 in all"):
        resolve("encoder", "parakeet").from_pretrained(str(folder))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("hubert_base", {"sampling_rate": 8000}, "reads 8000 Hz"),
        ("w2v_bert", {"num_mel_bins": 40}, "makes 80 values a row, the model reads 160"),
        ("parakeet", {"feature_size": 128}, "makes 128 mel bands, the model reads 80"),
    ],
)
def test_a_preprocessor_of_another_model(hub, tmp_path, name, change, message):
    folder = shutil.copytree(hub(name)[0], tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(UserError, match=message):
        resolve("encoder", MODELS[name][0]).frontend(str(folder))


@pytest.mark.parametrize("name", ["w2v_bert", "wavlm_base"])
def test_a_whole_model_trains_and_decodes(hub, tiny_config, name):
    from steermoe.config import DecodeConf, config_from_dict
    from steermoe.data.collator import Collator
    from steermoe.data.dataset import Example
    from steermoe.decode.decoder import decode_batch
    from steermoe.model import SteerMoE
    from steermoe.train.objectives import NextToken

    folder, _ = hub(name)
    conf = {"encoder": MODELS[name][0], "encoder_conf": {"model": str(folder), "dtype": "float32"}}
    model = SteerMoE.from_config(config_from_dict(tiny_config.to_dict() | conf)).train()
    feats, _, _ = features(folder, name)
    examples = [Example(f"utt{index}", feat, "one two", None) for index, feat in enumerate(feats)]
    before = {key: tensor.clone() for key, tensor in model.adapter_state().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    NextToken()(model, Collator(model.llm, "hear: ")(examples)).total.backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[key]) for key, tensor in model.adapter_state().items())
    model.eval()
    collator = Collator(model.llm, "hear: ", answers=False)
    together = decode_batch(model, collator(examples), [0.5] * 3, DecodeConf(max_tokens=5))
    alone = [decode_batch(model, collator([example]), [0.5], DecodeConf(max_tokens=5))[0] for example in examples]
    assert [hypothesis.tokens for hypothesis in together] == [hypothesis.tokens for hypothesis in alone]
