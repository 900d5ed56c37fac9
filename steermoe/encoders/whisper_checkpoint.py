"""Reads a Whisper checkpoint of any size from any of the layouts it is published in; sizes come from the tensors.

| layout | what is on the disk | head counts |
|---|---|---|
| Hugging Face | folder: config.json and model.safetensors (or shards and their index) | config.json |
| OpenAI | one `.pt` file, or a folder that holds exactly one | `dims` in the file |
| CTranslate2 | folder: model.bin, vocabulary.* (see ctranslate2.py) | `num_heads`, else D / 64 |

All end as the same thing: tensors under the names of transformers' WhisperForConditionalGeneration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable

import torch
from torch import Tensor

from steermoe.errors import UserError
from steermoe.files import read_json

ENCODER, DECODER = "model.encoder.", "model.decoder."
EMBED = DECODER + "embed_tokens.weight"

# OpenAI's module names to transformers'; the order matters ("cross_attn" before "attn").
OPENAI_NAMES = [
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.blocks\.", ".layers."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"^model\.encoder\.ln_post\.", "model.encoder.layer_norm."),
    (r"^model\.decoder\.ln\.", "model.decoder.layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.token_embedding\.", ".embed_tokens."),
]


@dataclass(frozen=True)
class WhisperDims:
    """Whisper's sizes. The decoder's are 0 when only an encoder is on the disk."""

    n_mels: int
    d_model: int
    encoder_layers: int
    encoder_heads: int
    decoder_layers: int
    decoder_heads: int
    vocab_size: int
    max_source_positions: int = 1500
    max_target_positions: int = 448
    encoder_ffn_dim: int = 0
    decoder_ffn_dim: int = 0


@dataclass
class WhisperCheckpoint:
    """dims, and tensors by canonical name in the dtype they are stored in (int8 comes out as float32).

    The output layer is not listed: in Whisper it is `model.decoder.embed_tokens.weight` again.
    layout: "huggingface" | "openai" | "ctranslate2". files: what the tensors were read from, for hashing.
    """

    dims: WhisperDims
    tensors: dict[str, Tensor]
    layout: str
    files: list[Path]


@dataclass
class Source:
    """An opened checkpoint whose tensors are not read yet. where: the name for messages; heads: (encoder, decoder)."""

    where: Path
    layout: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    heads: tuple[int, int]
    files: list[Path]
    stated: dict[str, int] = field(default_factory=dict)  # sizes that a configuration claims, to be compared


def load_checkpoint(path: str | Path, part: str = "all") -> WhisperCheckpoint:
    """Reads the whole model, or with part="encoder" only `model.encoder.*`, from a file or folder (module docstring).

    UserError when nothing there is a Whisper checkpoint, when it is truncated, when a tensor is missing, unexpected or of
    the wrong shape, and when the configuration and the tensors disagree.
    """
    if part not in ("all", "encoder"):
        raise ValueError(f"part must be 'all' or 'encoder', not {part!r}")
    source = open_checkpoint(path)
    dims = _dims(source, part)
    _check_sizes(source, dims)
    wanted = [name for name in _expected(dims) if part == "all" or name.startswith(ENCODER)]
    tensors = {name: source.read(name) for name in wanted}
    if part == "all" and "proj_out.weight" in source.shapes and not torch.equal(source.read("proj_out.weight"), tensors[EMBED]):
        raise UserError(f"{source.where}: the output layer differs from the token embedding, which no Whisper model has")
    return WhisperCheckpoint(dims, tensors, source.layout, source.files)


def open_checkpoint(path: str | Path) -> Source:
    """Picks the layout by the files that are there; no tensor is read yet. UserError if there is none, or a damaged one."""
    path = Path(path)
    if path.is_file():
        if path.suffix == ".pt":
            return _open_openai(path)
        if path.name != "model.bin" and path.suffix != ".safetensors" and path.name != "pytorch_model.bin":
            raise UserError(f"{path}: not a Whisper checkpoint; give a .pt file or a folder with config.json and its weights")
        path = path.parent
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if (path / name).is_file():
            return _open_huggingface(path, path / name)
    if (path / "model.bin").is_file():
        from steermoe.encoders.ctranslate2 import open_ctranslate2

        return open_ctranslate2(path)
    pt_files = sorted(path.glob("*.pt"))
    if len(pt_files) == 1:
        return _open_openai(pt_files[0])
    if pt_files:
        names = ", ".join(file.name for file in pt_files)
        raise UserError(f"{path}: holds several .pt files ({names}); name the one to use")
    raise UserError(
        f"{path}: holds no Whisper checkpoint (model.safetensors with config.json, one .pt file, or CTranslate2's model.bin)"
    )


def torch_load(path: Path) -> dict:
    """A pickle of tensors only (weights_only=True: nothing in the file is executed), memory-mapped where its format allows."""
    broken = f"{path}: not a readable PyTorch checkpoint of plain tensors (truncated, or a different file): fetch it again"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # files older than torch 1.6 are no zip archives and cannot be mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{broken} ({_first_line(error)})") from None
    except Exception as error:  # pickle.UnpicklingError, EOFError, KeyError …: whatever a damaged pickle runs into
        raise UserError(f"{broken} ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    if found := re.search(r"\bGLOBAL (\S+)", str(error)):  # torch's own text goes on to advise the unsafe way of reading
        return f"it holds a Python object, {found[1]}, that could run code when it is read: refused"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _open_openai(path: Path) -> Source:
    content = torch_load(path)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= set(content):
        raise UserError(f"{path}: not an OpenAI Whisper checkpoint (no 'dims' and 'model_state_dict' in it)")
    tensors = {_rename_openai(name): tensor for name, tensor in content["model_state_dict"].items()}
    tensors.pop(DECODER + "mask", None)  # some old files carry the causal mask
    dims = content["dims"]
    claims = {
        "n_mels": "n_mels",
        "d_model": "n_audio_state",
        "encoder_layers": "n_audio_layer",
        "max_source_positions": "n_audio_ctx",
        "decoder_layers": "n_text_layer",
        "vocab_size": "n_vocab",
        "max_target_positions": "n_text_ctx",
    }
    missing = [key for key in (*claims.values(), "n_audio_head", "n_text_head") if not isinstance(dims.get(key), int)]
    if missing:
        raise UserError(f"{path}: 'dims' lacks {', '.join(missing)}: not an OpenAI Whisper checkpoint")
    stated = {ours: dims[theirs] for ours, theirs in claims.items()}
    return _in_memory(path, "openai", tensors, (dims["n_audio_head"], dims["n_text_head"]), [path], stated)


def _rename_openai(name: str) -> str:
    for pattern, replacement in OPENAI_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _open_huggingface(folder: Path, weights: Path) -> Source:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{config_path}: no such file; a Hugging Face folder needs it beside {weights.name}")
    config = read_json(config_path)
    if config.get("model_type") != "whisper":
        raise UserError(f"{config_path}: model_type is {config.get('model_type')!r}, not 'whisper'")
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding", False):
        raise UserError(f"{config_path}: not Whisper's own arithmetic (activation_function gelu, scale_embedding false)")
    claims = {
        "n_mels": "num_mel_bins",
        "d_model": "d_model",
        "encoder_layers": "encoder_layers",
        "max_source_positions": "max_source_positions",
        "decoder_layers": "decoder_layers",
        "vocab_size": "vocab_size",
        "max_target_positions": "max_target_positions",
        "encoder_ffn_dim": "encoder_ffn_dim",
        "decoder_ffn_dim": "decoder_ffn_dim",
    }
    stated = {ours: config[theirs] for ours, theirs in claims.items() if isinstance(config.get(theirs), int)}
    heads = (config.get("encoder_attention_heads"), config.get("decoder_attention_heads"))
    if not all(isinstance(count, int) and count > 0 for count in heads):
        raise UserError(f"{config_path}: encoder_attention_heads and decoder_attention_heads must be there")
    if weights.suffix == ".bin":
        tensors = {_prefixed(name): tensor for name, tensor in torch_load(weights).items() if isinstance(tensor, Tensor)}
        return _in_memory(weights, "huggingface", tensors, heads, [weights], stated)
    files = [weights]
    if weights.suffix == ".json":
        index = read_json(weights)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise UserError(f"{weights}: no weight_map in it; fetch the model again")
        files = sorted({folder / Path(name).name for name in index["weight_map"].values()})
    return _open_safetensors(weights, files, heads, stated)


def _open_safetensors(where: Path, files: list[Path], heads: tuple[int, int], stated: dict[str, int]) -> Source:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    place: dict[str, tuple[object, str]] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {where.name} names it; fetch the model again")
        try:
            opened = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: damaged or truncated safetensors file ({_first_line(error)}); fetch it again") from None
        for name in opened.keys():
            shapes[_prefixed(name)] = tuple(opened.get_slice(name).get_shape())
            place[_prefixed(name)] = (opened, name)

    def read(name: str) -> Tensor:
        opened, stored_name = place[name]
        return opened.get_tensor(stored_name)

    return Source(where, "huggingface", shapes, read, heads, files, stated)


def _prefixed(name: str) -> str:
    """WhisperModel and WhisperEncoder save the same tensors without the leading "model."."""
    return "model." + name if name.startswith(("encoder.", "decoder.")) else name


def _in_memory(where, layout, tensors, heads, files, stated) -> Source:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Source(where, layout, shapes, tensors.__getitem__, heads, files, stated)


def _count_layers(names: Iterable[str], prefix: str) -> int:
    found = [int(m.group(1)) for name in names if (m := re.match(re.escape(prefix) + r"layers\.(\d+)\.", name))]
    return max(found, default=-1) + 1


def _dims(source: Source, part: str) -> WhisperDims:
    shapes = source.shapes

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{source.where}: not a complete Whisper checkpoint: tensor {name} is missing")
        if len(shapes[name]) != rank:
            raise UserError(f"{source.where}: tensor {name} has shape {shapes[name]}, not {rank} dimensions")
        return shapes[name]

    d_model, n_mels, _ = shape(ENCODER + "conv1.weight", 3)
    sizes = {
        "encoder_layers": _count_layers(shapes, ENCODER),
        "encoder_heads": source.heads[0],
        "max_source_positions": shape(ENCODER + "embed_positions.weight", 2)[0],
        "encoder_ffn_dim": shape(ENCODER + "layers.0.fc1.weight", 2)[0],
        "decoder_layers": 0,
        "decoder_heads": 0,
        "vocab_size": 0,
    }
    if part == "all" or any(name.startswith(DECODER) for name in shapes):
        sizes |= {
            "decoder_layers": _count_layers(shapes, DECODER),
            "decoder_heads": source.heads[1],
            "vocab_size": shape(EMBED, 2)[0],
            "max_target_positions": shape(DECODER + "embed_positions.weight", 2)[0],
            "decoder_ffn_dim": shape(DECODER + "layers.0.fc1.weight", 2)[0],
        }
    dims = WhisperDims(n_mels=n_mels, d_model=d_model, **sizes)
    for heads in (dims.encoder_heads, dims.decoder_heads or 1):
        if d_model % heads:
            raise UserError(f"{source.where}: {heads} attention heads do not divide the width {d_model}")
    return dims


def _expected(dims: WhisperDims) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of a Whisper model of these sizes."""
    d = dims.d_model
    shapes: dict[str, tuple[int, ...]] = {
        ENCODER + "conv1.weight": (d, dims.n_mels, 3),
        ENCODER + "conv1.bias": (d,),
        ENCODER + "conv2.weight": (d, d, 3),
        ENCODER + "conv2.bias": (d,),
        ENCODER + "embed_positions.weight": (dims.max_source_positions, d),
    }

    def norm(name: str) -> None:
        shapes[name + ".weight"] = shapes[name + ".bias"] = (d,)

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[name + ".weight"] = (rows, columns)
        if bias:
            shapes[name + ".bias"] = (rows,)

    def block(prefix: str, attentions: tuple[str, ...], ffn: int) -> None:
        for attention in attentions:
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{prefix}{attention}.{projection}", d, d, bias=projection != "k_proj")
            norm(f"{prefix}{attention}_layer_norm")
        linear(prefix + "fc1", ffn, d)
        linear(prefix + "fc2", d, ffn)
        norm(prefix + "final_layer_norm")

    for layer in range(dims.encoder_layers):
        block(f"{ENCODER}layers.{layer}.", ("self_attn",), dims.encoder_ffn_dim)
    norm(ENCODER + "layer_norm")
    if dims.decoder_layers:
        shapes[EMBED] = (dims.vocab_size, d)
        shapes[DECODER + "embed_positions.weight"] = (dims.max_target_positions, d)
        for layer in range(dims.decoder_layers):
            block(f"{DECODER}layers.{layer}.", ("self_attn", "encoder_attn"), dims.decoder_ffn_dim)
        norm(DECODER + "layer_norm")
    return shapes


def _check_sizes(source: Source, dims: WhisperDims) -> None:
    """Exactly the tensors of a Whisper model of these sizes, and nothing that contradicts the configuration."""
    for key, value in source.stated.items():
        found = getattr(dims, key)
        of_decoder = key.startswith(("decoder", "vocab", "max_target"))
        if found != value and (dims.decoder_layers or not of_decoder):
            raise UserError(
                f"{source.where}: the configuration says {key} = {value}, the tensors say {found}: they do not belong together"
            )
    expected = _expected(dims)
    missing = [name for name in expected if name not in source.shapes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source.where}: not a complete Whisper checkpoint: tensor {missing[0]}{more} missing; fetch it again")
    extra = [name for name in source.shapes if name not in expected and name != "proj_out.weight"]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(f"{source.where}: tensor {extra[0]}{more} not part of a Whisper model: a different architecture")
    for name, shape in expected.items():
        if source.shapes[name] != shape:
            raise UserError(f"{source.where}: tensor {name} has shape {source.shapes[name]}, {shape} was expected")
