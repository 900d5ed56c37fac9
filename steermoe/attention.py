"""softmax(Q K' / sqrt(E)) V of frozen layers. On a CPU rows of different lengths lie end to end, without padding between them, and each
attends to itself in matrix products; elsewhere torch's fused kernels take padded batches.

On a CPU the fused kernel takes up to three times as long, most of it going back; and what is computed for padding is lost. A
token's step of decoding gives the kernel the heads that share keys as places, which it computes at once.

Shape legend: B batch, K heads of the queries, G heads of keys and values (a divisor of K), S and T places, X places of all rows end to
end, E width of a head.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

NAME = "steermoe"  # among transformers' attention implementations
BLOCK = 256  # places of a row that look back together


class Rows:
    """Rows that lie end to end. lens: of each. layers: how many times attention has kept them apart."""

    def __init__(self, lens: list[int]):
        self.lens, self.layers = lens, 0

    def attend(self, q_1kxe: Tensor, k_1gxe: Tensor, v_1gxe: Tensor, causal: bool, scale: float) -> Tensor:
        """Each row to itself -> (1, K, X, E)."""
        self.layers += 1
        attended = causal_products if causal else products
        rows = zip(self.lens, *(tensor.split(self.lens, 2) for tensor in (q_1kxe, k_1gxe, v_1gxe)))
        return torch.cat([attended(q_1kse, k_1gse, v_1gse, scale) for length, q_1kse, k_1gse, v_1gse in rows if length], 2)


def causal_products(q_bkse: Tensor, k_bgse: Tensor, v_bgse: Tensor, scale: float) -> Tensor:
    """No place attends to later ones; what they would give is not computed either, but for a block's own."""
    places, blocks = q_bkse.shape[2], []
    for begin in range(0, places, BLOCK):
        end = min(begin + BLOCK, places)
        hidden = looking_back(end - begin, end, q_bkse.dtype)
        blocks.append(products(q_bkse[:, :, begin:end], k_bgse[:, :, :end], v_bgse[:, :, :end], scale, hidden))
    return torch.cat(blocks, 2) if len(blocks) > 1 else blocks[0]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def looking_back(places: int, keys: int, dtype: torch.dtype) -> Tensor:
    """For the last `places` of `keys` places, what is added to their scores: (1, 1, places, keys), on the CPU."""
    return added(torch.ones(1, 1, places, keys, dtype=torch.bool).tril(keys - places), dtype)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """mask bool, True where a place is attended to -> what is added to the scores: 0 there, elsewhere not -inf but the least number: a
    place that attends to nothing (padding) would become NaN, and all that follows with it.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def products(q_bkse: Tensor, k_bgte: Tensor, v_bgte: Tensor, scale: float, added_bkst: Tensor | None = None) -> Tensor:
    """Heads K * g / G and on share head g of keys and values. added_bkst: to the scores, (B or 1, 1, S or 1, T)."""
    batch, heads, places, width = q_bkse.shape
    groups = k_bgte.shape[1]
    grouped = (q_bkse * scale).reshape(batch, groups, heads // groups * places, width)
    scores = (grouped @ k_bgte.transpose(-1, -2)).view(batch, groups, heads // groups, places, -1)
    if added_bkst is not None:
        scores += added_bkst[:, :, None]
    weights = scores.softmax(-1).view(batch, groups, heads // groups * places, -1)
    return (weights @ v_bgte).view(batch, heads, places, width)


def one_place(q_bk1e: Tensor, k_bgte: Tensor, v_bgte: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """A step of decoding -> (B, 1, K, E). torch's kernel would copy keys and values for every head that shares them, or read them once
    for each: five times as long for three heads on a CPU.
    """
    batch, heads, _, width = q_bk1e.shape
    grouped_bgqe = q_bk1e.reshape(batch, k_bgte.shape[1], -1, width)
    found_bgqe = nnf.scaled_dot_product_attention(grouped_bgqe, k_bgte, v_bgte, attn_mask=mask, scale=scale)
    return found_bgqe.reshape(batch, 1, heads, width)


def in_transformers(module, query, key, value, attention_mask, scaling=None, is_causal=None, rows: Rows | None = None, **settings):
    """This file in the form of transformers' implementations -> (B, S, K, E), None; what it does not know goes to theirs. rows: the
    places of the only row of the batch are those of many.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    special = any(settings.get(name) is not None for name in ("softcap", "position_bias", "s_aux", "cache"))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if rows is not None and not special and settings.get("sliding_window") is None:
        return rows.attend(query, key, value, causal, scale).transpose(1, 2).contiguous(), None
    learning = query.device.type == "cpu" and torch.is_grad_enabled()
    one_of_many = query.shape[0] > 1 and query.shape[2] == 1  # alone, a text gets transformers' own, to the last bit of its rounding
    if one_of_many and not special and not learning and (attention_mask is None or attention_mask.shape[1] == 1):
        return one_place(query, key, value, attention_mask, scale), None
    if special or not learning or (attention_mask is None and query.shape[2] != key.shape[2]):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **settings
        )
    if attention_mask is not None:
        found = products(query, key, value, scale, added(attention_mask, query.dtype))
    else:
        found = (causal_products if causal else products)(query, key, value, scale)
    return found.transpose(1, 2).contiguous(), None


def attend_by_products(llm: nn.Module) -> None:
    """Makes a transformers model that would use torch's attention use this one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, in_transformers)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if llm.config._attn_implementation == "sdpa":
        llm.set_attn_implementation(NAME)
