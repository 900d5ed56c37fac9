"""The Conformer encoder of FireRedASR-AED at any size, with a steering hook after every block and masks throughout.

Shape legend: B batch, F input frames (100 Hz), M mel bands, T = ceil(F / 4) encoder frames (25 Hz), D width, K heads, C = 2D.
Parameter names are those of FireRedASR's checkpoint. Sources: Gulati et al., "Conformer" (arXiv 2005.08100); Dai et al.,
"Transformer-XL" (arXiv 1901.02860), section 3.3; Xu et al., "FireRedASR" (arXiv 2501.14350).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from steermoe.data.fbank import KaldiFbank
from steermoe.dtypes import resolve_dtype
from steermoe.encoders.base import Steer, no_steer
from steermoe.encoders.firered import read_firered
from steermoe.encoders.whisper import fingerprint
from steermoe.errors import UserError
from steermoe.fetch import find_model
from steermoe.files import atomic_write, write_json
from steermoe.masks import length_mask

FORMAT = "steermoe-conformer-1"
CONTEXT = 6  # zero frames behind the audio that the two convolutions see


def encoder_lens(feat_lens_b: Tensor) -> Tensor:
    """Frames after the two convolutions of stride 2: ceil(F / 4). (B,) int64 -> (B,) int64."""
    return (feat_lens_b + 3) // 4


class Conformer(nn.Module):
    """dim: D. layers: blocks. heads: K. feat_dim: M. kernel: of the depthwise convolution, odd. dropout: in training only.

    cmvn_mean and cmvn_istd (M,) normalise the features: (feats - mean) * istd.
    """

    min_frames = 0

    def __init__(self, dim: int, layers: int, heads: int, *, feat_dim: int = 80, kernel: int = 33, dropout: float = 0.0):
        super().__init__()
        if dim % heads or kernel % 2 == 0:
            raise UserError(f"a Conformer of width {dim}, {heads} heads, kernel {kernel}: heads must divide the width, kernels are odd")
        self.sizes = {"dim": dim, "layers": layers, "heads": heads, "feat_dim": feat_dim, "kernel": kernel}
        self.dim, self.num_layers = dim, layers
        self.register_buffer("cmvn_mean", torch.zeros(feat_dim))
        self.register_buffer("cmvn_istd", torch.ones(feat_dim))
        self.input_preprocessor = Subsampling(feat_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.layer_stack = nn.ModuleList(ConformerBlock(dim, heads, kernel, dropout) for _ in range(layers))

    def forward(self, feats_bfm: Tensor, feat_lens_b: Tensor, steer: Steer = no_steer) -> tuple[Tensor, Tensor]:
        """feats_bfm (B, F, M) float, right-padded with anything; feat_lens_b (B,) int64 -> hidden_btd (B, T, D), lens_b (B,)."""
        # In float32: bfloat16 would round fbank values of about 10 to 1/16 before their mean is taken away.
        feats_bfm = (feats_bfm.float() - self.cmvn_mean.float()) * self.cmvn_istd.float()
        feats_bfm = feats_bfm.masked_fill(~length_mask(feat_lens_b, feats_bfm.shape[1])[..., None], 0.0)
        hidden_btd = self.dropout(self.input_preprocessor(feats_bfm.to(self.input_preprocessor.out.weight.dtype)))
        lens_b = encoder_lens(feat_lens_b)
        mask_bt = length_mask(lens_b, hidden_btd.shape[1])
        distances_ud = relative_sinusoids(hidden_btd.shape[1], self.dim, hidden_btd.device).to(hidden_btd.dtype)
        for index, block in enumerate(self.layer_stack):
            hidden_btd = steer(index, block(hidden_btd, distances_ud, mask_bt))
        return hidden_btd, lens_b


class ConformerEncoder(Conformer):
    """A frozen Conformer. dtype: "auto", "bfloat16", "float16" or "float32"."""

    def __init__(self, sizes: dict[str, int], *, model: str, dtype: str = "auto"):
        super().__init__(**sizes)
        self.model, self.dtype, self.fingerprint = model, dtype, ""
        self.final_norm = nn.Identity()  # every block ends in a LayerNorm of its own

    @classmethod
    def frontend(cls, model: str) -> KaldiFbank:
        """What a checkpoint normalises by stays inside the encoder. A recipe's own encoder need not have been made yet."""
        local = Path(model).expanduser()
        return KaldiFbank(_read(local)[0]["feat_dim"] if local.exists() else 80)

    @classmethod
    def from_pretrained(cls, model: str, **conf) -> "ConformerEncoder":
        """model: FireRedASR-AED's folder (model.pth.tar and cmvn.ark), or one that `save_conformer` has written."""
        sizes, tensors = _read(find_model(model, kind="encoder"))
        with torch.device("meta"):
            encoder = cls(sizes, model=model, **conf)
        dtype = resolve_dtype(encoder.dtype)
        if dtype == torch.float32:  # else the weights would go on living in the file
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        encoder.load_state_dict(tensors, assign=True)
        encoder.fingerprint = fingerprint(tensors)
        encoder = encoder.requires_grad_(False).eval().to(dtype)
        encoder.cmvn_mean, encoder.cmvn_istd = tensors["cmvn_mean"].float(), tensors["cmvn_istd"].float()
        return encoder


def _read(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Sizes and float32 tensors of either form of folder."""
    if (path / "model.pth.tar").is_file():
        firered = read_firered(path)
        return firered.sizes, firered.tensors | {"cmvn_mean": firered.cmvn_mean, "cmvn_istd": firered.cmvn_istd}
    return load_conformer(path)


def save_conformer(folder: str | Path, encoder: Conformer, about: dict) -> None:
    """Writes config.json and model.safetensors. about: where it comes from, kept beside the sizes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_write(folder / "model.safetensors", "wb") as stream:
        stream.write(save(tensors))
    write_json(folder / "config.json", {"format": FORMAT, "sizes": encoder.sizes} | about)


def load_conformer(folder: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The inverse of `save_conformer`: sizes, float32 tensors. UserError if the folder holds something else."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{folder}: no Conformer here: neither FireRedASR's model.pth.tar and cmvn.ark nor a {FORMAT} config.json")
    try:
        tensors = load_file(folder / "model.safetensors")
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in Conformer(**config["sizes"]).state_dict().items()}
    except (OSError, SafetensorError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{folder}: damaged ({error}); make it again") from None
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise UserError(f"{folder}: model.safetensors does not have the tensors of the sizes in config.json; make it again")
    return config["sizes"], tensors


class Subsampling(nn.Module):
    """Two 3 x 3 convolutions of stride 2, then a linear layer: a quarter of the frames."""

    def __init__(self, feat_dim: int, dim: int, channels: int = 32):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, channels, 3, 2), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2), nn.ReLU())
        self.out = nn.Linear(channels * (((feat_dim - 1) // 2 - 1) // 2), dim)

    def forward(self, feats_bfm: Tensor) -> Tensor:
        """(B, F, M), zeros after each utterance's end -> (B, ceil(F / 4), D)."""
        maps_bctm = self.conv(nnf.pad(feats_bfm, (0, 0, 0, CONTEXT))[:, None])
        return self.out(maps_bctm.transpose(1, 2).flatten(2))


class ConformerBlock(nn.Module):
    """x + FF/2, + attention, + convolution, + FF/2, LayerNorm; every branch begins with its own LayerNorm."""

    def __init__(self, dim: int, heads: int, kernel: int, dropout: float):
        super().__init__()
        self.ffn1 = FeedForward(dim, dropout)
        self.mhsa = RelativeAttention(dim, heads, dropout)
        self.conv = ConvolutionModule(dim, kernel, dropout)
        self.ffn2 = FeedForward(dim, dropout)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, hidden_btd: Tensor, distances_ud: Tensor, mask_bt: Tensor) -> Tensor:
        hidden_btd = hidden_btd + 0.5 * self.ffn1(hidden_btd)
        hidden_btd = hidden_btd + self.mhsa(hidden_btd, distances_ud, mask_bt)
        hidden_btd = hidden_btd + self.conv(hidden_btd, mask_bt)
        hidden_btd = hidden_btd + 0.5 * self.ffn2(hidden_btd)
        return self.layer_norm(hidden_btd)


class FeedForward(nn.Module):
    def __init__(self, dim: int, dropout: float):
        super().__init__()
        inner = nn.Identity()  # FireRedASR has a dropout in this place, which counts in its checkpoint's names
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.SiLU(), inner, nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, hidden_btd: Tensor) -> Tensor:
        return self.net(hidden_btd)


class RelativeAttention(nn.Module):
    """Self-attention whose scores are (q + u) k + (q + v) r, r the projected sinusoid of the distance query - key."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.w_qs, self.w_ks, self.w_vs, self.fc, self.linear_pos = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        self.layer_norm_q, self.layer_norm_k, self.layer_norm_v = (nn.LayerNorm(dim) for _ in range(3))
        self.pos_bias_u, self.pos_bias_v = (nn.Parameter(torch.zeros(heads, dim // heads)) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_btd: Tensor, distances_ud: Tensor, mask_bt: Tensor) -> Tensor:
        q, k, v = (
            project(norm(hidden_btd)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, norm in (
                (self.w_qs, self.layer_norm_q),
                (self.w_ks, self.layer_norm_k),
                (self.w_vs, self.layer_norm_v),
            )
        )  # (B, K, T, D / K)
        r_kud = self.linear_pos(distances_ud).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        by_distance_bktu = (q + self.pos_bias_v[:, None]) @ r_kud.transpose(1, 2)
        bias_bktt = relative_shift(by_distance_bktu) * q.shape[-1] ** -0.5
        bias_bktt = bias_bktt.masked_fill(~mask_bt[:, None, None], -torch.inf)
        attended = nnf.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias_bktt)
        return self.dropout(self.fc(attended.transpose(1, 2).flatten(2)))


class ConvolutionModule(nn.Module):
    """Pointwise D -> 4D, gated to C = 2D, depthwise over time, LayerNorm, Swish, pointwise C -> D."""

    def __init__(self, dim: int, kernel: int, dropout: float):
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 4 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(2 * dim, 2 * dim, kernel, padding=kernel // 2, groups=2 * dim, bias=False)
        self.batch_norm = nn.LayerNorm(2 * dim)  # FireRedASR's name for it
        self.pointwise_conv2 = nn.Conv1d(2 * dim, dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_btd: Tensor, mask_bt: Tensor) -> Tensor:
        hidden_btd = self.pre_layer_norm(hidden_btd).masked_fill(~mask_bt[..., None], 0.0)
        # A convolution of kernel 1 is a linear layer, and faster as one.
        gated_btc = nnf.glu(nnf.linear(hidden_btd, self.pointwise_conv1.weight[..., 0]))
        mixed_btc = self.batch_norm(self.depthwise_conv(gated_btc.transpose(1, 2)).transpose(1, 2))
        return self.dropout(nnf.linear(nnf.silu(mixed_btc), self.pointwise_conv2.weight[..., 0]))


def relative_sinusoids(frames: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """(2T - 1, D) float32: row u is the sinusoid of distance T - 1 - u, so from T - 1 (far in the past) to 1 - T.

    sin on even, cos on odd places, wavelengths from 2 pi to 10000 * 2 pi.
    """
    distances_u = torch.arange(frames - 1, -frames, -1, device=device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angles = distances_u[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def relative_shift(by_distance_bktu: Tensor) -> Tensor:
    """(B, K, T, 2T - 1) by distance -> (B, K, T, T) by key: out[i, j] = in[i, T - 1 - (i - j)]."""
    frames = by_distance_bktu.shape[2]
    padded = nnf.pad(by_distance_bktu, (1, 0)).unflatten(-1, (2 * frames,))
    flat = padded.flatten(2)[..., frames:]  # drops the first T of T * 2T values: each row slides one further to the left
    return flat.unflatten(-1, (frames, 2 * frames - 1))[..., :frames]
