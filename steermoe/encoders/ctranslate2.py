"""Reads CTranslate2's `model.bin` (the layout of faster-whisper models) without the ctranslate2 package.

The file, little-endian, as CTranslate2's converter (python/ctranslate2/specs/model_spec.py, binary version 6) writes it:

    uint32 binary version | string name of the specification | uint32 its revision
    uint32 V, then V times: string name | uint8 rank | uint32 dimension x rank | uint8 type | uint32 bytes | the values
    uint32 A, then A times: string alias | string name of the variable it stands for
    string = uint16 length with the closing zero byte, then the bytes

Its Whisper differs from transformers' in names, and in attention projections that are stacked row-wise: q, k, v of the
self-attention and k, v of the cross-attention, with zeros as the key's missing bias. Quantised weights are stored as
round(weight * scale), one scale a row (int8) or a tensor (int16).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steermoe.encoders.whisper_checkpoint import DECODER, EMBED, ENCODER, Source
from steermoe.errors import UserError

BINARY_VERSIONS = (4, 5, 6)  # 4 brought type numbers; all three are read the same way
SPECIFICATION, REVISIONS = "WhisperSpec", (1, 2, 3)
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # order of CTranslate2's DataType
BYTES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
GELU = 3
# Switches of CTranslate2's decoder, and the value that means Whisper's own arithmetic.
SWITCHES = {"activation": GELU, "pre_norm": 1, "alibi": 0, "scale_embeddings": 0, "start_from_zero_embedding": 0}


@dataclass(frozen=True)
class Variable:
    """A tensor in the file: where its values start, and what they are."""

    shape: tuple[int, ...]
    type: str
    offset: int


class ModelBin:
    """The variables of a `model.bin`, by name; values are read on use. UserError for a truncated or different file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.stat().st_size < 4:
            raise self._truncated("its header", 0)
        self.bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        self.position = 0
        self.variables: dict[str, Variable] = {}
        version = self._integer("I", "the version")
        if version not in BINARY_VERSIONS:
            raise UserError(
                f"{self.path}: not a CTranslate2 model of a known version (found {version}, known: {BINARY_VERSIONS}); "
                "convert it again with a current ctranslate2, or give the Hugging Face folder"
            )
        self.specification = self._string("the specification")
        self.revision = self._integer("I", "the revision")
        for _ in range(self._integer("I", "the number of variables")):
            self._variable()
        for _ in range(self._integer("I", "the number of aliases")):
            alias, name = self._string("an alias"), self._string("an alias")
            for suffix in ("", "_scale"):  # an alias of a quantised weight stands for its scale too
                if name + suffix in self.variables:
                    self.variables[alias + suffix] = self.variables[name + suffix]

    def values(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Rows of a variable, dequantised to float32 where it is quantised, otherwise in its own type."""
        raw = self._raw(name, rows)
        if raw.dtype not in (torch.int8, torch.int16):
            return raw
        scale = self._raw(name + "_scale").float()
        if scale.ndim:
            scale = scale[rows].reshape(-1, *[1] * (raw.ndim - 1))
        return raw.float() / scale

    def scalar(self, name: str, default: int) -> int:
        return int(self._raw(name)) if name in self.variables else default

    def _raw(self, name: str, rows: slice = slice(None)) -> Tensor:
        variable = self.variables[name]
        size = int(np.prod(variable.shape, dtype=np.int64)) * BYTES[variable.type]
        data = self.bytes[variable.offset : variable.offset + size]
        if variable.shape:
            data = data.reshape(variable.shape[0], -1)[rows]
        # A copy: values start at any byte in the file, and torch wants them aligned.
        values = torch.from_numpy(np.array(data).reshape(-1)).view(getattr(torch, variable.type))
        return values.reshape(data.shape[0], *variable.shape[1:]) if variable.shape else values.reshape(())

    def _variable(self) -> None:
        name = self._string("a variable's name")
        shape = tuple(self._integer("I", name) for _ in range(self._integer("B", name)))
        number = self._integer("B", name)
        if number >= len(TYPES):
            raise UserError(f"{self.path}: variable {name} has the unknown type {number}; a damaged file? fetch it again")
        size = self._integer("I", name)
        if size != int(np.prod(shape, dtype=np.int64)) * BYTES[TYPES[number]]:
            raise UserError(f"{self.path}: variable {name}: {size} bytes for {shape} {TYPES[number]}; damaged, fetch it again")
        self.variables[name] = Variable(shape, TYPES[number], self.position)
        self._take(size, name)

    def _integer(self, kind: str, what: str) -> int:
        return struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind), what))[0]

    def _string(self, what: str) -> str:
        raw = bytes(self._take(self._integer("H", what), what))
        if not raw.endswith(b"\0") or not raw.isascii():
            raise UserError(f"{self.path}: {what} at byte {self.position} is not text: not a CTranslate2 model, or damaged")
        return raw[:-1].decode("ascii")

    def _take(self, count: int, what: str) -> np.ndarray:
        end = self.position + count
        if end > len(self.bytes):
            raise self._truncated(what, end)
        data = self.bytes[self.position : end]
        self.position = end
        return data

    def _truncated(self, what: str, end: int) -> UserError:
        return UserError(
            f"{self.path}: truncated: {what} needs byte {end}, the file ends at {self.path.stat().st_size}; "
            "fetch it again (a model that comes in parts needs all of them, joined in order)"
        )


def open_ctranslate2(folder: Path) -> Source:
    """A CTranslate2 folder as a Source of transformers' names. UserError names the file and what is not Whisper about it."""
    model = ModelBin(folder / "model.bin")
    if model.specification != SPECIFICATION or model.revision not in REVISIONS:
        found = f"{model.specification} revision {model.revision}"
        raise UserError(f"{model.path}: holds a {found}; a {SPECIFICATION} up to revision {REVISIONS[-1]} is needed")
    for name, value in SWITCHES.items():
        if model.scalar(f"decoder/{name}", value) != value:
            raise UserError(f"{model.path}: decoder/{name} is {model.scalar(f'decoder/{name}', value)}, Whisper's is {value}")
    places = _places(model)
    shapes = {name: _shape(model, variable, rows) for name, (variable, rows) in places.items()}
    width = shapes.get(ENCODER + "conv1.weight", (0,))[0]
    heads = tuple(model.scalar(f"{part}/num_heads", width // 64) for part in ("encoder", "decoder"))
    if min(heads) < 1:
        raise UserError(f"{model.path}: not a complete Whisper model: no encoder/conv1/weight and no num_heads")
    return Source(model.path, "ctranslate2", shapes, lambda name: model.values(*places[name]), heads, [model.path])


def _shape(model: ModelBin, variable: str, rows: slice) -> tuple[int, ...]:
    shape = model.variables[variable].shape
    return (len(range(*rows.indices(shape[0]))), *shape[1:])


def _places(model: ModelBin) -> dict[str, tuple[str, slice]]:
    """Canonical name -> (variable, its rows). A variable that is no part of Whisper is an error."""
    places: dict[str, tuple[str, slice]] = {}
    for variable, entry in model.variables.items():
        if not entry.shape:
            continue  # a setting
        if variable == "decoder/projection/weight":
            if entry is not model.variables.get("decoder/embeddings/weight"):  # normally an alias
                places["proj_out.weight"] = (variable, slice(None))
            continue
        if variable.endswith("_scale") and variable.removesuffix("_scale") in model.variables:
            continue
        if entry.type == "int32" or (entry.type.startswith("int") and variable + "_scale" not in model.variables):
            raise UserError(
                f"{model.path}: {variable} is quantised in a way that is not known ({entry.type}); "
                "use a float16, float32, bfloat16, int8 or int16 conversion"
            )
        for name, rows in _canonical(model, variable, entry.shape[0]):
            places[name] = (variable, rows)
    return places


def _canonical(model: ModelBin, variable: str, count: int) -> list[tuple[str, slice]]:
    """The tensors that one variable holds, each with its rows."""
    whole = slice(None)
    part, _, rest = variable.partition("/")
    prefix = {"encoder": ENCODER, "decoder": DECODER}.get(part)
    direct = {
        "embeddings/weight": EMBED.removeprefix(DECODER),
        "position_encodings/encodings": "embed_positions.weight",
        "layer_norm/gamma": "layer_norm.weight",
        "layer_norm/beta": "layer_norm.bias",
        **{f"conv{i}/{kind}": f"conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")},
    }
    if prefix and rest in direct:
        return [(prefix + direct[rest], whole)]
    words = rest.split("/")
    if not prefix or len(words) != 4 or not words[0].startswith("layer_") or not words[0][6:].isdigit():
        raise UserError(f"{model.path}: variable {variable} is not part of a Whisper model: a different or changed architecture")
    layer, block, module, kind = words
    prefix = f"{prefix}layers.{int(layer[6:])}."
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if module == "layer_norm" and kind in ("gamma", "beta"):
        return [(f"{prefix}{attention or 'final'}_layer_norm.{'weight' if kind == 'gamma' else 'bias'}", whole)]
    if block == "ffn" and module in ("linear_0", "linear_1"):
        return [(f"{prefix}fc{int(module[-1]) + 1}.{kind}", whole)]
    stacks = {
        "self_attn": {"linear_0": "qkv", "linear_1": "o"},
        "encoder_attn": {"linear_0": "q", "linear_1": "kv", "linear_2": "o"},
    }
    stack = stacks.get(attention, {}).get(module, "")
    if not stack or kind not in ("weight", "bias") or count % len(stack):
        raise UserError(f"{model.path}: variable {variable} is not part of a Whisper model: a different or changed architecture")
    result, size = [], count // len(stack)
    for index, letter in enumerate(stack):
        rows = slice(index * size, (index + 1) * size)
        if letter == "k" and kind == "bias":
            if model.values(variable, rows).any():
                raise UserError(f"{model.path}: {variable} gives the keys a bias, which Whisper does not have")
            continue
        result.append((f"{prefix}{attention}.{'out' if letter == 'o' else letter}_proj.{kind}", rows))
    return result
