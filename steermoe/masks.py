"""Lengths to masks and positions. Pure functions; B batch, T time."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lens_b: Tensor, size: int) -> Tensor:
    """lens_b (B,) int64 -> (B, size) bool, True where the index is below the length."""
    return torch.arange(size, device=lens_b.device) < lens_b[:, None]


def positions_from_mask(mask_bt: Tensor) -> Tensor:
    """mask_bt (B, T) bool -> (B, T) int64: 0, 1, 2, … over the True places of each row; 0 on padding, left or right."""
    return (mask_bt.long().cumsum(1) - 1).clamp(min=0).masked_fill(~mask_bt, 0)
