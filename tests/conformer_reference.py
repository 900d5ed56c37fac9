"""FireRedASR's Conformer encoder written down from its description, one utterance at a time, in numpy float64.

Nothing here comes from the library, and nothing is clever: attention is a loop over pairs of frames, and each pair's position
term is the projected sinusoid of their distance (Transformer-XL, arXiv 1901.02860, section 3.3).
"""

from __future__ import annotations

from typing import Callable

import numpy as np

Array = np.ndarray


def hidden_after_each_block(
    weights: dict[str, Array], mean_m: Array, istd_m: Array, feats_fm: Array, heads: int, steer: Callable = lambda layer, x: x
) -> list[Array]:
    """weights: by FireRedASR's names without "encoder.". Returns each block's output (T, D), before its steering."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = subsample((feats_fm.astype(np.float64) - mean_m) * istd_m, of(weights, "input_preprocessor."))
    outputs = []
    while block := of(weights, f"layer_stack.{len(outputs)}."):
        x = x + 0.5 * feed_forward(x, of(block, "ffn1.net."))
        x = x + attention(x, of(block, "mhsa."), heads)
        x = x + convolution(x, of(block, "conv."))
        x = x + 0.5 * feed_forward(x, of(block, "ffn2.net."))
        outputs.append(layer_norm(x, of(block, "layer_norm.")))
        x = steer(len(outputs) - 1, outputs[-1])
    return outputs


def of(weights: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def subsample(feats_fm: Array, weights: dict[str, Array]) -> Array:
    image = np.concatenate([feats_fm, np.zeros((6, feats_fm.shape[1]))])[None]  # (1, F + 6, M)
    for index in (0, 2):
        image = np.maximum(convolve_2d(image, weights[f"conv.{index}.weight"], weights[f"conv.{index}.bias"]), 0)
    flat = np.stack([image[:, frame].reshape(-1) for frame in range(image.shape[1])])  # channel by channel
    return flat @ weights["out.weight"].T + weights["out.bias"]


def convolve_2d(image: Array, kernel: Array, bias: Array) -> Array:
    """3 x 3, stride 2, no padding. image (I, F, M), kernel (O, I, 3, 3) -> (O, (F - 1) // 2, (M - 1) // 2)."""
    rows, columns = (image.shape[1] - 1) // 2, (image.shape[2] - 1) // 2
    output = np.empty((kernel.shape[0], rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = image[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            output[:, row, column] = (kernel * patch).sum((1, 2, 3)) + bias
    return output


def layer_norm(x: Array, weights: dict[str, Array]) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights["weight"] + weights["bias"]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def feed_forward(x: Array, weights: dict[str, Array]) -> Array:
    inner = layer_norm(x, of(weights, "0.")) @ weights["1.weight"].T + weights["1.bias"]
    return (inner * sigmoid(inner)) @ weights["4.weight"].T + weights["4.bias"]


def sinusoid(distance: int, dim: int) -> Array:
    places = np.arange(dim)
    angle = distance / 10000 ** ((places - places % 2) / dim)
    return np.where(places % 2 == 0, np.sin(angle), np.cos(angle))


def attention(x: Array, weights: dict[str, Array], heads: int) -> Array:
    frames, dim = x.shape
    q, k, v = (layer_norm(x, of(weights, f"layer_norm_{name}.")) @ weights[f"w_{name}s.weight"].T for name in "qkv")
    position = {d: weights["linear_pos.weight"] @ sinusoid(d, dim) for d in range(1 - frames, frames)}
    output = np.empty_like(x)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        u_bias, v_bias = weights["pos_bias_u"][head], weights["pos_bias_v"][head]
        for i in range(frames):
            scores = np.array(
                [(q[i, part] + u_bias) @ k[j, part] + (q[i, part] + v_bias) @ position[i - j][part] for j in range(frames)]
            ) / np.sqrt(dim // heads)
            gates = np.exp(scores - scores.max())
            output[i, part] = (gates / gates.sum()) @ v[:, part]
    return output @ weights["fc.weight"].T


def convolution(x: Array, weights: dict[str, Array]) -> Array:
    wide = layer_norm(x, of(weights, "pre_layer_norm.")) @ weights["pointwise_conv1.weight"][:, :, 0].T  # (T, 4D)
    values, gates = np.split(wide, 2, axis=1)
    gated = values * sigmoid(gates)
    taps = weights["depthwise_conv.weight"][:, 0]  # (2D, kernel)
    reach = taps.shape[1] // 2
    mixed = np.zeros_like(gated)
    for i in range(len(gated)):
        for tap in range(taps.shape[1]):
            if 0 <= i + tap - reach < len(gated):
                mixed[i] += taps[:, tap] * gated[i + tap - reach]
    mixed = layer_norm(mixed, of(weights, "batch_norm."))
    return (mixed * sigmoid(mixed)) @ weights["pointwise_conv2.weight"][:, :, 0].T
