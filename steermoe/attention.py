"""softmax(Q K' / sqrt(E)) V of frozen layers: torch's fused kernels, but three products where gradients are computed on a CPU.

There the fused kernel takes twice as long, most of it going back: it was 42 % of a training step in bfloat16. On a GPU, and
where nothing is learnt, it stays; a token's step of decoding gives it the heads that share keys as places, which it computes at once.

Shape legend: B batch, K heads of the queries, G heads of keys and values (a divisor of K), S and T places, E width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

NAME = "steermoe"  # among transformers' attention implementations


def attention(q_bkse: Tensor, k_bkte: Tensor, v_bkte: Tensor, mask: Tensor | None) -> Tensor:
    """-> (B, K, S, E). mask bool, True where a place is attended to, (B, 1, 1 or S, T); None: everywhere."""
    if learning_on_cpu(q_bkse):
        return products(q_bkse, k_bkte, v_bkte, mask, q_bkse.shape[-1] ** -0.5)
    return nnf.scaled_dot_product_attention(q_bkse, k_bkte, v_bkte, attn_mask=mask)


def learning_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and torch.is_grad_enabled()


def products(q_bkse: Tensor, k_bgte: Tensor, v_bgte: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Heads K * g / G and on share head g of keys and values."""
    batch, heads, places, width = q_bkse.shape
    groups = k_bgte.shape[1]
    grouped = (q_bkse * scale).reshape(batch, groups, heads // groups * places, width)
    scores = (grouped @ k_bgte.transpose(-1, -2)).view(batch, groups, heads // groups, places, -1)
    if mask is not None:
        # Not -inf: a place that attends to nothing (padding) would become NaN, and all that follows with it.
        scores += torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, torch.finfo(scores.dtype).min)[:, :, None]
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


def in_transformers(module, query, key, value, attention_mask, scaling=None, is_causal=None, **settings) -> tuple[Tensor, None]:
    """`attention` in the form of transformers' implementations; what it does not know goes to theirs."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    special = any(settings.get(name) is not None for name in ("softcap", "position_bias", "s_aux", "cache"))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.shape[2] == 1 and not special and not learning_on_cpu(query) and (attention_mask is None or attention_mask.shape[1] == 1):
        return one_place(query, key, value, attention_mask, scale), None
    if special or not learning_on_cpu(query) or (attention_mask is None and query.shape[2] != key.shape[2]):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **settings
        )
    if attention_mask is None and causal:
        attention_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
    return products(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None


def attend_by_products(llm: nn.Module) -> None:
    """Makes a transformers model that would use torch's attention use this one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, in_transformers)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if llm.config._attn_implementation == "sdpa":
        llm.set_attn_implementation(NAME)
