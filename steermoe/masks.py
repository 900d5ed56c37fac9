"""Lengths to masks and positions, padded rows to rows end to end. Pure functions; B batch, T time, X real places of all rows, D width."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lens_b: Tensor, size: int) -> Tensor:
    """lens_b (B,) int64 -> (B, size) bool, True where the index is below the length."""
    return torch.arange(size, device=lens_b.device) < lens_b[:, None]


def positions_from_mask(mask_bt: Tensor) -> Tensor:
    """mask_bt (B, T) bool -> (B, T) int64: 0, 1, 2, … over the True places of each row; 0 on padding, left or right."""
    return (mask_bt.long().cumsum(1) - 1).clamp(min=0).masked_fill(~mask_bt, 0)


def unpadded(values_btd: Tensor, mask_bt: Tensor) -> Tensor:
    """(B, T, D) -> (X, D): the True places of the first row, of the second, …"""
    return values_btd[mask_bt]


def padded(values_xd: Tensor, mask_bt: Tensor) -> Tensor:
    """The inverse of `unpadded`, 0 on padding. values_xd (X, …) -> (B, T, …)."""
    values_bt = values_xd.new_zeros(*mask_bt.shape, *values_xd.shape[1:])
    return values_bt.index_put((mask_bt,), values_xd)
