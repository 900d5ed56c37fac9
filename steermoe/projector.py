"""From steered encoder frames to the LLM's soft prompt P_audio: pooling under a mask, then a linear layer D -> H.

LinearProjector is the paper's: a vector for every pooled frame. StackProjector is SLAM-ASR's: stacked frames, two layers.
Shape legend: B batch, T encoder frames, U = ceil(T / kernel) pooled frames, D encoder width, H LLM width.
Source: SteerMoE (arXiv 2510.13558), the step between equations 3 and 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steermoe.errors import UserError
from steermoe.masks import length_mask


def masked_pool(hidden_btd: Tensor, lens_b: Tensor, kernel: int, kind: str = "avg") -> tuple[Tensor, Tensor]:
    """Pools groups of `kernel` frames; frames at or after an utterance's length enter no pool.

    hidden_btd (B, T, D), lens_b (B,) int64 -> pooled_bud (B, U, D), ceil(lens_b / kernel). A last, incomplete group is pooled
    over the frames it has; pooled frames after the end are 0. kind: "avg" or "max".
    """
    frames = hidden_btd.shape[1]
    padding = -frames % kernel
    valid_bu = length_mask(lens_b, frames + padding).unflatten(1, (-1, kernel))[..., None]
    grouped = nnf.pad(hidden_btd, (0, 0, 0, padding)).unflatten(1, (-1, kernel))
    if kind == "avg":
        pooled_bud = grouped.masked_fill(~valid_bu, 0.0).sum(2) / valid_bu.sum(2).clamp(min=1)
    elif kind == "max":
        pooled_bud = grouped.masked_fill(~valid_bu, -torch.inf).amax(2).masked_fill(~valid_bu.any(2), 0.0)
    else:
        raise UserError(f"projector_conf.pool: {kind!r} is not avg or max")
    return pooled_bud, (lens_b + kernel - 1) // kernel


def stack_frames(hidden_btd: Tensor, lens_b: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Puts `kernel` frames in a row behind one another; frames at or after an utterance's length become zeros.

    hidden_btd (B, T, D), lens_b (B,) int64 -> (B, U, kernel * D), ceil(lens_b / kernel).
    """
    frames = hidden_btd.shape[1]
    hidden_btd = hidden_btd.masked_fill(~length_mask(lens_b, frames)[..., None], 0.0)
    return nnf.pad(hidden_btd, (0, 0, 0, -frames % kernel)).unflatten(1, (-1, kernel)).flatten(2), (lens_b + kernel - 1) // kernel


class LinearProjector(nn.Module):
    """The paper's projection. pool: "avg" (paper) or "max" (authors' code). kernel: frames in a pool (paper: 4).
    place: the encoder's final LayerNorm comes before ("after_norm") or after ("before_norm", authors' code) the pooling.
    """

    def __init__(self, encoder_dim: int, llm_dim: int, *, pool: str = "avg", kernel: int = 4, place: str = "after_norm"):
        super().__init__()
        if kernel < 1:
            raise UserError(f"projector_conf.kernel: {kernel}; at least 1 is needed")
        if pool not in ("avg", "max"):
            raise UserError(f"projector_conf.pool: {pool!r} is not avg or max")
        if place not in ("after_norm", "before_norm"):
            raise UserError(f"projector_conf.place: {place!r} is not after_norm or before_norm")
        self.pool, self.kernel, self.place = pool, kernel, place
        self.linear = nn.Linear(encoder_dim, llm_dim)

    def forward(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, D) any float dtype, lens_b (B,) -> P_audio (B, U, H) float32, audio_lens_b (B,) int64."""
        if self.place == "after_norm":
            hidden_btd = final_norm(hidden_btd)
        pooled_bud, audio_lens_b = masked_pool(hidden_btd, lens_b, self.kernel, self.pool)
        if self.place == "before_norm":
            pooled_bud = final_norm(pooled_bud)
        return self.linear(pooled_bud.to(self.linear.weight.dtype)), audio_lens_b

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"projector": dict(self.named_parameters())}


class StackProjector(nn.Module):
    """SLAM-ASR's projector (arXiv 2402.08846): Linear(ReLU(Linear(stacked frames))), after the encoder's final LayerNorm.

    kernel: frames in a stack (SLAM-ASR: 5; 4 gives the frame rate of the paper's pooling). hidden: the first layer's width.
    """

    def __init__(self, encoder_dim: int, llm_dim: int, *, kernel: int = 4, hidden: int = 2048):
        super().__init__()
        if kernel < 1 or hidden < 1:
            raise UserError(f"projector_conf.{'kernel' if kernel < 1 else 'hidden'}: {min(kernel, hidden)}; at least 1 is needed")
        self.kernel = kernel
        self.first, self.second = nn.Linear(kernel * encoder_dim, hidden), nn.Linear(hidden, llm_dim)

    def forward(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, D) any float dtype, lens_b (B,) int64 -> P_audio (B, U, H) float32, audio_lens_b (B,) int64."""
        stacked, audio_lens_b = stack_frames(final_norm(hidden_btd), lens_b, self.kernel)
        return self.second(self.first(stacked.to(self.first.weight.dtype)).relu()), audio_lens_b

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"projector": dict(self.named_parameters())}
