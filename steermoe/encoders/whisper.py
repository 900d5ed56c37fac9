"""Whisper's encoder at any size, with a steering hook after every layer and masks where transformers has none.

Shape legend: B batch, F input frames (100 Hz), M mel bands, T encoder frames (50 Hz), D width, K heads.
Parameter names are those of transformers' WhisperEncoder.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steermoe.attention import Rows
from steermoe.data.features import WINDOW_FRAMES, WhisperLogMel, silence_value
from steermoe.dtypes import resolve_dtype
from steermoe.encoders.base import Steer, no_steer
from steermoe.encoders.whisper_checkpoint import load_checkpoint
from steermoe.errors import UserError
from steermoe.fetch import find_model
from steermoe.masks import length_mask, padded, unpadded

WINDOWS = ("full30", "crop", "trim")


class WhisperEncoder(nn.Module):
    """window: "full30" encodes 30 s and keeps every frame (the paper), "crop" encodes 30 s and keeps the frames of the real
    audio, "trim" encodes the real length under a mask. Training and decoding must use the same one.
    dtype: "auto", "bfloat16", "float16" or "float32".
    """

    def __init__(
        self,
        n_mels: int,
        d_model: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        positions: int,
        *,
        model: str,
        window: str = "trim",
        dtype: str = "auto",
    ):
        super().__init__()
        if window not in WINDOWS:
            raise UserError(f"encoder_conf.window: {window!r} is not one of {', '.join(WINDOWS)}")
        self.dim, self.num_layers, self.window, self.model, self.dtype = d_model, layers, window, model, dtype
        self.min_frames = 0 if window == "trim" else WINDOW_FRAMES
        self.conv1 = nn.Conv1d(n_mels, d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(positions, d_model)
        self.layers = nn.ModuleList(WhisperLayer(d_model, heads, ffn_dim) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d_model)
        self.fingerprint = ""

    @property
    def final_norm(self) -> nn.Module:
        return self.layer_norm

    @classmethod
    def frontend(cls, model: str) -> WhisperLogMel:
        return WhisperLogMel(load_checkpoint(find_model(model, kind="encoder"), part="encoder").dims.n_mels)

    @classmethod
    def from_pretrained(cls, model: str, **conf) -> "WhisperEncoder":
        """model: Hugging Face folder, OpenAI .pt, CTranslate2 folder, hub id or catalog name."""
        checkpoint = load_checkpoint(find_model(model, kind="encoder"), part="encoder")
        dims = checkpoint.dims
        sizes = (dims.n_mels, dims.d_model, dims.encoder_layers, dims.encoder_heads, dims.encoder_ffn_dim, dims.max_source_positions)
        encoder = cls(*sizes, model=model, **conf)
        prefix = "model.encoder."
        tensors = {name.removeprefix(prefix): t.float() for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
        encoder.load_state_dict(tensors)
        encoder.fingerprint = fingerprint(tensors)
        return encoder.requires_grad_(False).eval().to(resolve_dtype(encoder.dtype))

    def forward(self, feats_bfm: Tensor, feat_lens_b: Tensor, steer: Steer = no_steer) -> tuple[Tensor, Tensor]:
        """feats_bfm (B, F, M) float, right-padded with anything; feat_lens_b (B,) int64 -> hidden_btd (before the final
        LayerNorm, in the encoder's dtype), lens_b. UserError if an utterance is over 30 s.
        """
        if int(feat_lens_b.max()) > WINDOW_FRAMES:
            raise UserError(
                f"an utterance of {int(feat_lens_b.max()) / 100:.1f} s: Whisper's encoder reads at most 30 s; "
                "lower data_conf.max_seconds and run stage 2 again"
            )
        feats_bfm = feats_bfm.to(self.conv1.weight.dtype)
        masked = self.window == "trim"
        if not masked:
            feats_bfm = pad_to_window(feats_bfm, feat_lens_b)
        mask_bf = length_mask(feat_lens_b, feats_bfm.shape[1]) if masked else None
        # Each convolution must see zeros after the end, as it does when the utterance comes alone.
        hidden = nnf.gelu(self.conv1(_masked(feats_bfm, mask_bf).transpose(1, 2)))
        hidden = nnf.gelu(self.conv2(_masked(hidden.transpose(1, 2), mask_bf).transpose(1, 2)))
        hidden_btd = hidden.transpose(1, 2)
        frames = hidden_btd.shape[1]
        hidden_btd = hidden_btd + self.embed_positions.weight[:frames]
        lens_b = (feat_lens_b + 1) // 2
        read_b = lens_b if masked else torch.full_like(lens_b, frames)
        mask_bt = length_mask(read_b, frames)
        if hidden_btd.device.type == "cpu":
            rows, seen = Rows(read_b.tolist()), (1, -1, self.dim) if masked else hidden_btd.shape
            hidden_1xd = unpadded(hidden_btd, mask_bt)[None]
            for index, layer in enumerate(self.layers):
                hidden_1xd = steer(index, layer(hidden_1xd, rows).view(seen)).reshape(1, -1, self.dim)
            hidden_btd = padded(hidden_1xd[0], mask_bt)
        else:
            for index, layer in enumerate(self.layers):
                hidden_btd = steer(index, layer(hidden_btd, mask_bt[:, None, None] if masked else None))
        return hidden_btd, read_b if self.window == "full30" else lens_b


class WhisperLayer(nn.Module):
    """Pre-norm transformer layer: h + Attention(LN(h)), then h + W2 GELU(W1 LN(h))."""

    def __init__(self, dim: int, heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = WhisperAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, hidden_btd: Tensor, among: Tensor | Rows | None) -> Tensor:
        """hidden_btd (B, T, D) and a mask (B, 1, 1, T) or None, or (1, X, D) and its rows."""
        hidden_btd = hidden_btd + self.self_attn(self.self_attn_layer_norm(hidden_btd), among)
        return hidden_btd + self.fc2(nnf.gelu(self.fc1(self.final_layer_norm(hidden_btd))))


class WhisperAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden_btd: Tensor, among: Tensor | Rows | None) -> Tensor:
        q, k, v = (
            project(hidden_btd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if isinstance(among, Rows):
            attended = among.attend(q, k, v, False, q.shape[-1] ** -0.5)
        else:
            attended = nnf.scaled_dot_product_attention(q, k, v, attn_mask=among)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def pad_to_window(feats_bfm: Tensor, feat_lens_b: Tensor) -> Tensor:
    """(B, F, M) -> (B, 3000, M): every frame from the utterance's end on gets the value of Whisper's padded silence."""
    batch, frames, mels = feats_bfm.shape
    padded = feats_bfm.new_zeros(batch, WINDOW_FRAMES, mels)
    padded[:, :frames] = feats_bfm
    for row, length in enumerate(feat_lens_b.tolist()):
        padded[row, length:] = silence_value(padded[row, :length])
    return padded


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: equal for the same weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].detach().float().contiguous().numpy())
    return digest.hexdigest()


def _masked(values_btx: Tensor, mask_bt: Tensor | None) -> Tensor:
    return values_btx if mask_bt is None else values_btx.masked_fill(~mask_bt[..., None], 0.0)
