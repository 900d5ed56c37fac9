"""Writes one Whisper model in every layout, from the layouts' descriptions and not from the reader's code."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

D, HEADS, FFN, MELS, VOCAB = 64, 1, 96, 80, 70
ENCODER_LAYERS, DECODER_LAYERS = 2, 1


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
        n_mels=MELS, n_vocab=VOCAB, n_audio_ctx=20, n_audio_state=D, n_audio_head=HEADS,
        n_audio_layer=ENCODER_LAYERS, n_text_ctx=12, n_text_state=D, n_text_head=HEADS, n_text_layer=DECODER_LAYERS,
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
    path: Path,
    variables: dict[str, torch.Tensor],
    settings: dict[str, tuple[int, int]] | None = None,
    spec: str = "WhisperSpec",
    revision: int = 3,
    version: int = 6,
    aliases: tuple = (("decoder/projection/weight", "decoder/embeddings/weight"),),
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if settings is None:
        settings = {"encoder/num_heads": (2, HEADS), "decoder/num_heads": (2, HEADS)}
        settings |= {"decoder/activation": (1, 3), "decoder/pre_norm": (1, 1)}
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
