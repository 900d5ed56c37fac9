"""Reads the encoder of a FireRedASR-AED folder: `model.pth.tar` and `cmvn.ark`. Sizes come from the tensors.

`model.pth.tar` is a torch.save'd {"args": argparse.Namespace, "model_state_dict": {name: tensor}}: the encoder's tensors under
`encoder.`, the decoder's under `decoder.`. It is read with that one class allowed and no other, so nothing in it is executed.
`cmvn.ark` is Kaldi's 2 x (M + 1) statistics: per mel band the sum and the sum of squares, and in the last column of the first row
the number of frames.

Shapes: M mel bands, D width, K heads, L blocks. Source: Xu et al., "FireRedASR" (arXiv 2501.14350), and its published code.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steermoe.data.ark import FIX, read_matrix
from steermoe.encoders.whisper_checkpoint import torch_load
from steermoe.errors import UserError

WEIGHTS, CMVN = "model.pth.tar", "cmvn.ark"
PREFIX = "encoder."
IGNORED = {"positional_encoding.pe"}  # sinusoids of up to 5000 frames; ours are computed, for any length
CHANNELS = 32  # of the two subsampling convolutions
VARIANCE_FLOOR = 1e-20  # FireRedASR's
AGAIN = "copy it from the published FireRedASR-AED again"


@dataclass(frozen=True)
class FireRed:
    """sizes: dim, layers, heads, feat_dim, kernel. tensors: float32 by name without "encoder.", mapped from the file where its
    format allows. cmvn_mean, cmvn_istd: (M,) float32, (feats - mean) * istd is what the encoder was trained on.
    """

    sizes: dict[str, int]
    tensors: dict[str, Tensor]
    cmvn_mean: Tensor
    cmvn_istd: Tensor


def read_firered(folder: str | Path) -> FireRed:
    """UserError names the file: missing, damaged, of another model, with other Python objects in it, or inconsistent."""
    folder = Path(folder)
    for name in (WEIGHTS, CMVN):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; a FireRedASR-AED folder holds {WEIGHTS} and {CMVN}")
    mean, istd = read_cmvn(folder / CMVN)
    args, tensors = _read_weights(folder / WEIGHTS)
    sizes = _sizes(folder / WEIGHTS, args, tensors)
    if len(mean) != sizes["feat_dim"]:
        raise UserError(f"{folder / CMVN}: statistics of {len(mean)} mel bands, but {WEIGHTS} reads {sizes['feat_dim']}; {AGAIN}")
    return FireRed(sizes, {name: tensor.float() for name, tensor in tensors.items()}, mean, istd)


def read_cmvn(path: str | Path) -> tuple[Tensor, Tensor]:
    """Kaldi's CMVN statistics -> mean (M,), 1 / standard deviation (M,), float32. UserError if they are none."""
    try:
        stats = read_matrix(str(path), dtype=np.float64)
    except UserError as error:
        raise UserError(str(error).replace(FIX, AGAIN)) from None  # nobody makes this file by a feature stage
    if stats.shape[0] != 2 or stats.shape[1] < 2:
        raise UserError(f"{path}: a {stats.shape[0]} x {stats.shape[1]} matrix; CMVN statistics are 2 x (mel bands + 1); {AGAIN}")
    count = stats[0, -1]
    if not np.isfinite(stats).all() or count < 1:
        raise UserError(f"{path}: statistics with NaN or infinity, or of no frames (count {count:g}); {AGAIN}")
    mean = stats[0, :-1] / count
    variance = stats[1, :-1] / count - mean**2
    istd = 1 / np.sqrt(variance.clip(min=VARIANCE_FLOOR))
    return torch.from_numpy(mean).float(), torch.from_numpy(istd).float()


def _read_weights(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """(args, encoder tensors by name without the prefix). The decoder's tensors are not kept."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch_load(path)
    args, state = (content.get("args"), content.get("model_state_dict")) if isinstance(content, dict) else (None, None)
    if not isinstance(args, argparse.Namespace) or not isinstance(state, dict):
        raise UserError(f"{path}: not a FireRedASR checkpoint (no 'args' and 'model_state_dict' in it)")
    named = {str(name).removeprefix(PREFIX): value for name, value in state.items() if str(name).startswith(PREFIX)}
    return vars(args), {name: value for name, value in named.items() if isinstance(value, Tensor) and name not in IGNORED}


def _sizes(path: Path, args: dict[str, object], tensors: dict[str, Tensor]) -> dict[str, int]:
    """The sizes that the tensors' shapes say; UserError unless these are exactly its tensors and `args` says the same."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def size(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) <= axis:
            raise UserError(f"{path}: not a FireRedASR-AED encoder: tensor {PREFIX}{name} is missing or has too few dimensions")
        return shapes[name][axis]

    claims = {"dim": "d_model", "layers": "n_layers_enc", "heads": "n_head", "feat_dim": "idim", "kernel": "kernel_size"}
    if lacking := [name for name in claims.values() if not isinstance(args.get(name), int)]:
        raise UserError(f"{path}: not a FireRedASR-AED checkpoint: its args lack {', '.join(lacking)}")
    sizes = {
        "dim": size("input_preprocessor.out.weight", 0),
        "layers": len({name.split(".")[1] for name in shapes if name.startswith("layer_stack.")}),
        "heads": size("layer_stack.0.mhsa.pos_bias_u", 0),
        "feat_dim": args["idim"],  # the tensors only say how many bands are left after the two convolutions
        "kernel": size("layer_stack.0.conv.depthwise_conv.weight", 2),
    }
    for ours, theirs in claims.items():
        if args[theirs] != sizes[ours]:
            raise UserError(f"{path}: args.{theirs} is {args[theirs]}, but the tensors say {sizes[ours]}; {AGAIN}")
    if min(sizes.values()) < 1 or sizes["dim"] % sizes["heads"]:
        raise UserError(f"{path}: impossible sizes {sizes}; {AGAIN}")
    expected = _expected(**sizes)
    for trouble, names in (("missing", expected.keys() - shapes.keys()), ("not known", shapes.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: not a FireRedASR-AED encoder: tensor {PREFIX}{min(names)}{more} {trouble}")
    for name, shape in expected.items():
        if shapes[name] != shape or not tensors[name].is_floating_point():
            found = f"{tensors[name].dtype} {shapes[name]}"
            raise UserError(f"{path}: tensor {PREFIX}{name} is {found}, floats {shape} were expected; {AGAIN}")
    return sizes


def _expected(dim: int, layers: int, heads: int, feat_dim: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an encoder of these sizes."""
    bands = ((feat_dim - 1) // 2 - 1) // 2
    shapes: dict[str, tuple[int, ...]] = {
        "input_preprocessor.conv.0.weight": (CHANNELS, 1, 3, 3),
        "input_preprocessor.conv.0.bias": (CHANNELS,),
        "input_preprocessor.conv.2.weight": (CHANNELS, CHANNELS, 3, 3),
        "input_preprocessor.conv.2.bias": (CHANNELS,),
        "input_preprocessor.out.weight": (dim, CHANNELS * bands),
        "input_preprocessor.out.bias": (dim,),
    }
    for layer in range(layers):
        block = f"layer_stack.{layer}."
        norms = {f"{name}.net.0": dim for name in ("ffn1", "ffn2")} | {f"mhsa.layer_norm_{name}": dim for name in "qkv"}
        norms |= {"conv.pre_layer_norm": dim, "conv.batch_norm": 2 * dim, "layer_norm": dim}
        for name, width in norms.items():
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
        for name in ("ffn1", "ffn2"):
            shapes |= {f"{block}{name}.net.1.weight": (4 * dim, dim), f"{block}{name}.net.1.bias": (4 * dim,)}
            shapes |= {f"{block}{name}.net.4.weight": (dim, 4 * dim), f"{block}{name}.net.4.bias": (dim,)}
        for name in ("w_qs", "w_ks", "w_vs", "fc", "linear_pos"):
            shapes[f"{block}mhsa.{name}.weight"] = (dim, dim)
        shapes |= {f"{block}mhsa.pos_bias_{name}": (heads, dim // heads) for name in "uv"}
        shapes |= {
            f"{block}conv.pointwise_conv1.weight": (4 * dim, dim, 1),
            f"{block}conv.depthwise_conv.weight": (2 * dim, 1, kernel),
            f"{block}conv.pointwise_conv2.weight": (dim, 2 * dim, 1),
        }
    return shapes
