"""A KV cache with room behind its last place: a further token is written there, and what is held already is not copied.

transformers' own grows by concatenation, which copies the keys and values of every layer for every token: a quarter of the time
of a step of a small LLM on a CPU.

Shape legend: B rows, G heads of keys and values, S places, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # places


class RoomyLayer(DynamicLayer):
    """DynamicLayer whose keys and values are the used part of larger tensors."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.growing_keys, self.growing_values = Growing(), Growing()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self.growing_keys.append(self.keys, key_states)
        self.values = self.growing_values.append(self.values, value_states)
        return self.keys, self.values


class Growing:
    """Appends in place to the tensor that it returned last; any other one (rows were chosen, places cut off) is copied first."""

    def __init__(self):
        self.room_bgse = self.last_bgse = None

    def append(self, held_bgse: Tensor, new_bgse: Tensor) -> Tensor:
        """(B, G, S, E), or any empty tensor, and (B, G, S', E) -> (B, G, S + S', E)."""
        begin = held_bgse.shape[-2] if held_bgse.numel() else 0
        end = begin + new_bgse.shape[-2]
        if held_bgse is not self.last_bgse or end > self.room_bgse.shape[-2]:
            rows, heads, _, width = new_bgse.shape
            self.room_bgse = new_bgse.new_empty(rows, heads, end + ROOM, width)
            if begin:
                self.room_bgse[:, :, :begin] = held_bgse
        self.room_bgse[:, :, begin:end] = new_bgse
        self.last_bgse = self.room_bgse[:, :, :end]
        return self.last_bgse


def roomy_cache(config) -> DynamicCache:
    """transformers' cache for a model of this configuration; layers of a kind of their own (sliding windows) stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def written(held_n: Tensor, new_r: Tensor, begin: int) -> Tensor:
    """The tensor with rows written from `begin` on, or where it is too short a copy with room for as many again."""
    end = begin + len(new_r)
    if end > len(held_n):
        held_n = torch.cat([held_n, held_n.new_empty(end, *held_n.shape[1:])])
    held_n[begin:end] = new_r
    return held_n
