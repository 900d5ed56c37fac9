"""Writes FireRedASR-AED folders with random weights: the published names and files at sizes of a few kilobytes.

The list of names is written down here apart from the library's, from the published checkpoint's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import kaldiio
import numpy as np
import torch

CHANNELS = 32
DIM, LAYERS, HEADS, FEAT_DIM, KERNEL = 24, 3, 3, 80, 5


def write_firered(folder: Path, seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
    """model.pth.tar and cmvn.ark in `folder`; the tensors that the encoder has, by name without "encoder."."""
    folder.mkdir(parents=True, exist_ok=True)
    content = firered_content(seed, **sizes)
    torch.save(content, folder / "model.pth.tar")
    kaldiio.save_mat(str(folder / "cmvn.ark"), cmvn_stats(content["args"].idim))
    state = content["model_state_dict"]
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items() if is_weight(name)}


def is_weight(name: str) -> bool:
    return name.startswith("encoder.") and name != "encoder.positional_encoding.pe"


def cmvn_stats(feat_dim: int = FEAT_DIM, seed: int = 4) -> np.ndarray:
    """(2, M + 1) float64 over 10^8 frames of mean about 12 and variance about 16."""
    rng = np.random.default_rng(seed)
    count = 123456789.0
    mean, variance = 12 + rng.normal(size=feat_dim), 16 + rng.normal(size=feat_dim)
    return np.stack([np.append(mean, 1.0) * count, np.append(variance + mean**2, 0.0) * count])


def firered_content(
    seed: int = 0, dim: int = DIM, layers: int = LAYERS, heads: int = HEADS, feat_dim: int = FEAT_DIM, kernel: int = KERNEL
) -> dict:
    """What torch.load gives: args as the publisher's, encoder and (a piece of) decoder tensors, the position table."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=generator)

    state: dict[str, torch.Tensor] = {"encoder.positional_encoding.pe": draw(1, 19, dim)}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(width, scale=0.3, mean=1.0), draw(width, scale=0.3)

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = draw(rows, columns, scale=columns**-0.5)
        if bias:
            state[f"{name}.bias"] = draw(rows, scale=0.3)

    front = "encoder.input_preprocessor."
    for index, inputs in ((0, 1), (2, CHANNELS)):
        state[f"{front}conv.{index}.weight"] = draw(CHANNELS, inputs, 3, 3, scale=(9 * inputs) ** -0.5)
        state[f"{front}conv.{index}.bias"] = draw(CHANNELS, scale=0.3)
    linear(front + "out", dim, CHANNELS * (((feat_dim - 1) // 2 - 1) // 2))
    for layer in range(layers):
        block = f"encoder.layer_stack.{layer}."
        for half in ("ffn1", "ffn2"):
            norm(f"{block}{half}.net.0", dim)
            linear(f"{block}{half}.net.1", 4 * dim, dim)
            linear(f"{block}{half}.net.4", dim, 4 * dim)
        for name in ("w_qs", "w_ks", "w_vs", "fc", "linear_pos"):
            linear(f"{block}mhsa.{name}", dim, dim, bias=False)
        for name in ("layer_norm_q", "layer_norm_k", "layer_norm_v"):
            norm(f"{block}mhsa.{name}", dim)
        for name in ("pos_bias_u", "pos_bias_v"):
            state[f"{block}mhsa.{name}"] = draw(heads, dim // heads, scale=0.5)
        norm(block + "conv.pre_layer_norm", dim)
        state[block + "conv.pointwise_conv1.weight"] = draw(4 * dim, dim, 1, scale=dim**-0.5)
        state[block + "conv.depthwise_conv.weight"] = draw(2 * dim, 1, kernel, scale=kernel**-0.5)
        norm(block + "conv.batch_norm", 2 * dim)
        state[block + "conv.pointwise_conv2.weight"] = draw(dim, 2 * dim, 1, scale=(2 * dim) ** -0.5)
        norm(block + "layer_norm", dim)
    state["decoder.tgt_word_emb.weight"] = draw(50, dim)
    linear("decoder.layer_stack.0.self_attn.w_qs", dim, dim)
    args = argparse.Namespace(
        blank="<blank>", blank_id=0, d_inner=4 * dim, d_model=dim, dropout_rate=0.1, eos="<eos>", eos_id=4, idim=feat_dim,
        input_length_max=60.0, input_length_min=0.1, kernel_size=kernel, n_head=heads, n_layers_dec=1, n_layers_enc=layers,
        odim=50, output_length_max=250, output_length_min=1, pad="<pad>", pad_id=2, pe_maxlen=10, residual_dropout=0.1,
        sos="<sos>", sos_id=3, unk="<unk>",
    )  # fmt: skip
    return {"args": args, "model_state_dict": state}
