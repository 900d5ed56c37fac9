"""One tiny random Whisper in every layout must load to the same tensors; every kind of damage must be named."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from steermoe.encoders.whisper_checkpoint import load_checkpoint
from steermoe.errors import UserError
from whisper_writers import (
    D,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    FFN,
    HEADS,
    MELS,
    VOCAB,
    ct2_variables,
    openai_dict,
    quantise,
    write_bin,
    write_ct2,
    write_huggingface,
    write_pt,
)


@pytest.fixture(scope="module")
def model():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCAB, d_model=D, encoder_layers=ENCODER_LAYERS, decoder_layers=DECODER_LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN, num_mel_bins=MELS, max_source_positions=20,
        max_target_positions=12, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def wanted(model) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}


WRITERS = {
    "huggingface": lambda m, p: write_huggingface(m, p / "hf"),
    "shards": lambda m, p: write_huggingface(m, p / "hf", "100KB"),
    "pytorch_model.bin": lambda m, p: write_bin(m, p / "hf"),
    "pt": lambda m, p: write_pt(m, p / "tiny.pt"),
    "folder with one pt": lambda m, p: write_pt(m, p / "folder" / "tiny.pt").parent,
    "ctranslate2": lambda m, p: write_ct2(p / "ct2", ct2_variables(m)),
    "model.bin": lambda m, p: write_ct2(p / "ct2", ct2_variables(m)) / "model.bin",
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_tensors(layout, model, wanted, tmp_path):
    path = WRITERS[layout](model, tmp_path)
    if layout == "shards":
        assert len(list(path.glob("*.safetensors"))) > 2
    checkpoint = load_checkpoint(path)
    assert checkpoint.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(checkpoint.tensors[name], tensor), name
    dims = checkpoint.dims
    assert (dims.n_mels, dims.d_model, dims.vocab_size, dims.encoder_ffn_dim) == (MELS, D, VOCAB, FFN)
    assert (dims.encoder_layers, dims.decoder_layers) == (ENCODER_LAYERS, DECODER_LAYERS)
    assert (dims.encoder_heads, dims.decoder_heads) == (HEADS, HEADS)
    assert (dims.max_source_positions, dims.max_target_positions) == (20, 12)
    assert all(file.is_file() for file in checkpoint.files)


@pytest.mark.parametrize("layout", WRITERS)
def test_encoder_alone(layout, model, wanted, tmp_path):
    checkpoint = load_checkpoint(WRITERS[layout](model, tmp_path), part="encoder")
    assert checkpoint.tensors.keys() == {name for name in wanted if name.startswith("model.encoder.")}
    assert checkpoint.dims.decoder_layers == DECODER_LAYERS


def test_a_saved_encoder_without_decoder(model, wanted, tmp_path):
    from safetensors.torch import save_file

    path = write_huggingface(model, tmp_path / "hf")
    kept = {name.removeprefix("model."): t.contiguous() for name, t in wanted.items() if name.startswith("model.encoder.")}
    save_file(kept, path / "model.safetensors")
    checkpoint = load_checkpoint(path, part="encoder")
    assert torch.equal(checkpoint.tensors["model.encoder.conv1.bias"], wanted["model.encoder.conv1.bias"])
    assert checkpoint.dims.decoder_layers == 0
    with pytest.raises(UserError, match="model.decoder.* is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype, model, wanted, tmp_path):
    variables = {name: tensor.to(dtype) for name, tensor in ct2_variables(model).items()}
    tensors = load_checkpoint(write_ct2(tmp_path, variables)).tensors
    assert all(torch.equal(tensors[name], tensor.to(dtype)) for name, tensor in wanted.items())


@pytest.mark.parametrize("kind,steps", [("int8", 127), ("int16", 2**10)])
def test_quantised_weights_come_back_within_half_a_step(kind, steps, model, wanted, tmp_path):
    tensors = load_checkpoint(write_ct2(tmp_path, quantise(ct2_variables(model), kind))).tensors
    for name, tensor in wanted.items():
        if tensor.ndim == 1 or "embed_positions" in name:
            assert torch.equal(tensors[name], tensor), name
        else:
            assert tensors[name].dtype == torch.float32
            # A fused q, k, v matrix has one int16 scale, set by its largest value.
            largest = tensor.flatten(1).abs().amax(1) if kind == "int8" else torch.tensor(1.0)
            assert ((tensors[name] - tensor).flatten(1).abs() <= 0.51 / steps * largest.reshape(-1, 1)).all(), name


def test_heads_are_width_over_64_where_old_files_do_not_say(model, tmp_path):
    dims = load_checkpoint(write_ct2(tmp_path, ct2_variables(model), settings={}, revision=1)).dims
    assert (dims.encoder_heads, dims.decoder_heads) == (1, 1)


def test_whisper_arithmetic_is_the_same_after_loading(model, tmp_path):
    from steermoe.encoders.whisper_decoder import build_model

    loaded = build_model(load_checkpoint(write_ct2(tmp_path, ct2_variables(model))))
    mel, ids = torch.randn(2, MELS, 40), torch.tensor([[1, 5, 9], [2, 6, 3]])
    with torch.no_grad():
        for a, b in ((model, loaded), (model.model.encoder, loaded.model.encoder)):
            extra = {"decoder_input_ids": ids} if a is model else {}
            assert torch.allclose(a(mel, **extra)[0], b(mel, **extra)[0], atol=1e-6)


# ---- what is refused


def refused(path, message: str, names: Path | None = None) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert str(names or path) in str(error.value)


@pytest.mark.parametrize("layout", ["huggingface", "pytorch_model.bin", "pt", "ctranslate2"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_anywhere(layout, share, model, tmp_path):
    path = WRITERS[layout](model, tmp_path)
    file = path if path.is_file() else max(path.iterdir(), key=lambda f: f.stat().st_size)
    os.truncate(file, int(file.stat().st_size * share))
    refused(path, "truncated|damaged|not a|missing", file)


def test_ctranslate2_cut_after_any_byte_is_refused(model, tmp_path):
    path = write_ct2(tmp_path, dict(list(ct2_variables(model).items())[:2])) / "model.bin"
    content = path.read_bytes()
    cuts = [*range(0, 200), *range(200, len(content), 997), len(content) - 1]
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_checkpoint(path)


def test_random_bytes_under_every_name(tmp_path):
    junk = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    for name in ("a/model.bin", "b/tiny.pt", "c/model.safetensors", "d/pytorch_model.bin"):
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(junk)
        if name[0] in "cd":
            write_config(file.parent)
        refused(file.parent, "fetch it again|not a CTranslate2", file)


def write_config(folder: Path, **changes) -> None:
    config = {"model_type": "whisper", "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_nothing_there(tmp_path):
    refused(tmp_path / "absent", "no such file or folder")
    refused(tmp_path, "holds no Whisper checkpoint")
    (tmp_path / "notes.md").write_text("x")
    refused(tmp_path / "notes.md", "not a Whisper checkpoint")


def test_several_pt_files(model, tmp_path):
    for name in ("a.pt", "b.pt"):
        write_pt(model, tmp_path / name)
    refused(tmp_path, r"a\.pt, b\.pt")


def test_huggingface_folder_without_config_or_of_another_model(model, tmp_path):
    path = write_huggingface(model, tmp_path)
    config = json.loads((path / "config.json").read_text())
    for change, message in (
        ({"model_type": "bert"}, "'bert'"),
        ({"activation_function": "relu"}, "arithmetic"),
        ({"encoder_attention_heads": None}, "encoder_attention_heads"),
        ({"encoder_attention_heads": 5}, "5 attention heads do not divide"),
        ({"d_model": 128}, "d_model = 128, the tensors say 64"),
        ({"encoder_layers": 4}, "encoder_layers = 4, the tensors say 2"),
    ):
        (path / "config.json").write_text(json.dumps(config | change))
        refused(path, message, path)
    (path / "config.json").unlink()
    refused(path, "no such file", path / "config.json")


def test_a_missing_shard_is_named(model, tmp_path):
    path = write_huggingface(model, tmp_path, "100KB")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(path, "model.safetensors.index.json names it", shard)


@pytest.mark.parametrize("layout", ["pt", "ctranslate2", "huggingface"])
def test_missing_extra_and_misshapen_tensors(layout, model, tmp_path):
    from safetensors.torch import save_file

    def write(change) -> Path:
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        if layout == "pt":
            content = openai_dict(model)
            change(content["model_state_dict"], "encoder.blocks.1.mlp_ln.weight")
            (tmp_path / "m").mkdir()
            torch.save(content, tmp_path / "m" / "tiny.pt")
            return tmp_path / "m" / "tiny.pt"
        if layout == "ctranslate2":
            variables = ct2_variables(model)
            change(variables, "encoder/layer_1/ffn/layer_norm/gamma")
            return write_ct2(tmp_path / "m", variables)
        path = write_huggingface(model, tmp_path / "m")
        state = {k: v.contiguous().clone() for k, v in model.state_dict().items() if k != "proj_out.weight"}
        change(state, "model.encoder.layers.1.final_layer_norm.weight")
        save_file(state, path / "model.safetensors")
        return path

    name = r"model\.encoder\.layers\.1\.final_layer_norm\.weight"
    refused(write(lambda state, key: state.pop(key)), name + ".*missing", tmp_path / "m")
    refused(write(lambda state, key: state.update({key: torch.ones(D + 1)})), name + r".*\(65,\).*\(64,\)", tmp_path / "m")
    extra = {"encoder.adapter.weight": torch.ones(3)}
    refused(write(lambda state, key: state.update(extra)), "adapter.*not part of", tmp_path / "m")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"dims": {}, "model_state_dict": Attack()}, protocol=2))
    torch.save({"dims": {}, "model_state_dict": Attack()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        refused(tmp_path / name, "plain tensors")
    assert not marker.exists()


def test_a_pt_file_of_something_else(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "not an OpenAI Whisper checkpoint")
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, tmp_path / "half.pt")
    refused(tmp_path / "half.pt", "'dims' lacks")


def test_ctranslate2_models_that_are_not_whisper(model, tmp_path):
    variables = ct2_variables(model)
    refused(write_ct2(tmp_path / "a", variables, spec="TransformerSpec"), "TransformerSpec", tmp_path / "a" / "model.bin")
    refused(write_ct2(tmp_path / "b", variables, revision=9), "revision 9", tmp_path / "b")
    refused(write_ct2(tmp_path / "c", variables, version=7), "known version", tmp_path / "c")
    refused(write_ct2(tmp_path / "d", variables, settings={"decoder/activation": (1, 0)}), "activation", tmp_path / "d")
    biased = {name: tensor.clone() for name, tensor in variables.items()}
    biased["encoder/layer_0/self_attention/linear_0/bias"][D] = 1.0
    refused(write_ct2(tmp_path / "e", biased), "keys a bias", tmp_path / "e")
    packed = variables | {"encoder/layer_0/ffn/linear_0/weight": torch.ones(FFN, D // 8, dtype=torch.int32)}
    refused(write_ct2(tmp_path / "f", packed), "quantised in a way", tmp_path / "f")
    unscaled = variables | {"encoder/layer_0/ffn/linear_0/weight": torch.ones(FFN, D, dtype=torch.int8)}
    refused(write_ct2(tmp_path / "g", unscaled), "quantised in a way", tmp_path / "g")
    untied = variables | {"decoder/projection/weight": torch.ones(VOCAB, D)}
    refused(write_ct2(tmp_path / "h", untied, aliases=()), "output layer", tmp_path / "h")


# ---- the real files, against numbers that other programs computed from them


def synthetic_mel() -> torch.Tensor:
    """(1, 80, 3000), the same on every machine."""
    t, band = np.arange(3000)[None], np.arange(80)[:, None]
    return torch.from_numpy((0.5 * np.sin(0.05 * t * (1 + band / 40)) * np.exp(-band / 60)).astype(np.float32)[None])


# Encoder output [0, [0, 500, 1499], :4], prompt, greedy continuation, logits of tokens 0, 220, 1000 at its first step.
REAL = {
    "whisper-tiny.en": (  # by OpenAI's own model code
        [[-0.769584, -0.657512, 1.133902, -0.797962],
         [-0.193587, -1.351196, 1.46751, -0.064192], [-0.113796, 0.084188, -0.3349, 0.580995]],
        [50257, 50362], [6952, 345, 845, 881, 13, 50256], [3.249432, 6.095368, -0.300859],
    ),
    "whisper-base": (  # by ctranslate2 4.8.5 in float32
        [[-1.258162, -0.4553, -0.728035, -1.240416],
         [-0.105625, 0.150276, -0.397209, -1.083065], [-1.009622, 0.676193, 0.282266, 0.510832]],
        [50258, 50259, 50359, 50363], [522, 66, 9323, 1385, 36682, 8], [-6.85041, -3.359004, -9.073128],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_weights_compute_what_other_programs_compute(name):
    from steermoe.encoders.whisper_decoder import build_model
    from steermoe.fetch import cache_dir

    path = cache_dir() / "models" / name
    if not path.is_dir():
        pytest.skip(f"{name} is not in the cache; python -m steermoe.bin.fetch {name}")
    frames, prompt, continuation, logits = REAL[name]
    model = build_model(load_checkpoint(path))
    with torch.no_grad():
        encoded = model.model.encoder(synthetic_mel()).last_hidden_state
        output = model(encoder_outputs=(encoded,), decoder_input_ids=torch.tensor([prompt + continuation])).logits[0]
    assert torch.allclose(encoded[0, [0, 500, 1499], :4], torch.tensor(frames), atol=2e-4)
    steps = output[len(prompt) - 1 :]
    assert steps[: len(continuation)].argmax(-1).tolist() == continuation
    assert torch.allclose(steps[0, [0, 220, 1000]], torch.tensor(logits), atol=2e-4)
