"""One tiny random Whisper in every layout must load to the same tensors; every kind of damage must be named.

The writers of the .pt and the CTranslate2 layout are written here from the layouts' descriptions, not from the reader.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from steermoe.encoders.whisper_checkpoint import load_checkpoint
from steermoe.errors import UserError

D, HEADS, FFN, MELS, VOCAB = 64, 1, 96, 80, 70
ENCODER_LAYERS, DECODER_LAYERS = 2, 1


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


def write_huggingface(model, path: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(path, max_shard_size=shard)
    return path


def write_bin(model, path: Path) -> Path:
    write_huggingface(model, path)
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


def openai_dict(model) -> dict:
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        side, rest = name.removeprefix("model.").split(".", 1)
        if rest.startswith("layers."):
            _, index, rest = rest.split(".", 2)
            for ours, theirs in (("self_attn.", "attn."), ("encoder_attn.", "cross_attn.")):
                if rest.startswith(ours):
                    projection, kind = rest.removeprefix(ours).split(".")
                    rest = f"{theirs}{attention[projection]}.{kind}"
            for ours, theirs in (
                ("self_attn_layer_norm", "attn_ln"),
                ("encoder_attn_layer_norm", "cross_attn_ln"),
                ("final_layer_norm", "mlp_ln"),
                ("fc1", "mlp.0"),
                ("fc2", "mlp.2"),
            ):
                if rest.startswith(ours + "."):
                    rest = theirs + rest[len(ours) :]
            name = f"{side}.blocks.{index}.{rest}"
        elif rest == "embed_positions.weight":
            name = f"{side}.positional_embedding"
        elif rest == "embed_tokens.weight":
            name = f"{side}.token_embedding.weight"
        elif rest.startswith("layer_norm."):
            name = f"{side}.{'ln_post' if side == 'encoder' else 'ln'}.{rest.removeprefix('layer_norm.')}"
        else:
            name = f"{side}.{rest}"
        state[name] = tensor
    dims = dict(
        n_mels=MELS, n_vocab=VOCAB, n_audio_ctx=20, n_audio_state=D, n_audio_head=HEADS, n_audio_layer=ENCODER_LAYERS, n_text_ctx=12,
        n_text_state=D, n_text_head=HEADS, n_text_layer=DECODER_LAYERS,
    )  # fmt: skip
    return {"dims": dims, "model_state_dict": state}


def write_pt(model, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(openai_dict(model), path)
    return path


TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def ct2_variables(model) -> dict[str, torch.Tensor]:
    state = {name.removeprefix("model."): tensor.clone() for name, tensor in model.state_dict().items()}
    out: dict[str, torch.Tensor] = {}

    def linear(target: str, *sources: str) -> None:
        out[f"{target}/weight"] = torch.cat([state[f"{source}.weight"] for source in sources])
        zeros = torch.zeros(D)  # the key projection has no bias
        out[f"{target}/bias"] = torch.cat([state.get(f"{source}.bias", zeros) for source in sources])

    def norm(target: str, source: str) -> None:
        out[f"{target}/gamma"], out[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            out[f"encoder/{conv}/{kind}"] = state[f"encoder.{conv}.{kind}"]
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    for side, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(layers):
            target, source = f"{side}/layer_{i}", f"{side}.layers.{i}"
            linear(f"{target}/self_attention/linear_0", *(f"{source}.self_attn.{letter}_proj" for letter in "qkv"))
            linear(f"{target}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if side == "decoder":
                linear(f"{target}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                linear(f"{target}/attention/linear_1", *(f"{source}.encoder_attn.{letter}_proj" for letter in "kv"))
                linear(f"{target}/attention/linear_2", f"{source}.encoder_attn.out_proj")
                norm(f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            linear(f"{target}/ffn/linear_0", f"{source}.fc1")
            linear(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
    return out


def quantise(variables: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """As CTranslate2's converter: weights to int8 with a scale a row (convolutions flattened), or int16 with one scale."""
    out = {}
    for name, tensor in variables.items():
        if not name.endswith("/weight"):
            out[name] = tensor
        elif kind == "int8":
            flat = tensor.flatten(1)
            scale = 127.0 / flat.abs().amax(1)
            out[name] = (flat * scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
            out[f"{name}_scale"] = scale
        else:
            scale = 2**10 / tensor.abs().max()
            out[name] = (tensor * scale).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
            out[f"{name}_scale"] = scale
    return out


def pack(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def write_ct2(
    path: Path, variables, settings=None, spec="WhisperSpec", revision=3, version=6, aliases=(("decoder/projection/weight", "decoder/embeddings/weight"),)
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if settings is None:
        settings = {"encoder/num_heads": (2, HEADS), "decoder/num_heads": (2, HEADS), "decoder/activation": (1, 3), "decoder/pre_norm": (1, 1)}
    blocks = [struct.pack("<I", version), pack(spec), struct.pack("<II", revision, len(variables) + len(settings))]
    for name, (kind, value) in settings.items():
        raw = struct.pack({1: "<b", 2: "<h"}[kind], value)
        blocks += [pack(name), struct.pack("<BBI", 0, kind, len(raw)), raw]
    for name, tensor in variables.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        raw = (tensor.view(torch.int16) if kind == "bfloat16" else tensor).contiguous().numpy().tobytes()
        shape = struct.pack(f"<{tensor.ndim}I", *tensor.shape)
        blocks += [pack(name), struct.pack("<B", tensor.ndim), shape, struct.pack("<BI", TYPE_IDS[kind], len(raw)), raw]
    blocks.append(struct.pack("<I", len(aliases)))
    blocks += [pack(name) for pair in aliases for name in pair]
    (path / "model.bin").write_bytes(b"".join(blocks))
    (path / "config.json").write_text("{}")
    return path


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
    assert (dims.encoder_layers, dims.decoder_layers, dims.encoder_heads, dims.decoder_heads) == (ENCODER_LAYERS, DECODER_LAYERS, HEADS, HEADS)
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
    refused(write(lambda state, key: state.update({"encoder.adapter.weight": torch.ones(3)})), "adapter.*not part of", tmp_path / "m")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"dims": {}, "model_state_dict": Attack()}))
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
        [[-0.769584, -0.657512, 1.133902, -0.797962], [-0.193587, -1.351196, 1.46751, -0.064192], [-0.113796, 0.084188, -0.3349, 0.580995]],
        [50257, 50362], [6952, 345, 845, 881, 13, 50256], [3.249432, 6.095368, -0.300859],
    ),
    "whisper-base": (  # by ctranslate2 4.8.5 in float32
        [[-1.258162, -0.4553, -0.728035, -1.240416], [-0.105625, 0.150276, -0.397209, -1.083065], [-1.009622, 0.676193, 0.282266, 0.510832]],
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
