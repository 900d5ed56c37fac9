"""Frozen LLM weights in 8 or 4 bits, through bitsandbytes: gradients still pass through them to the soft prompt.

int8: LLM.int8() (Dettmers et al., arXiv 2208.07339). int4: NF4 in blocks of 64 with quantised scales, as in QLoRA (Dettmers et al.,
arXiv 2305.14314). The linear layers of the LLM's blocks are quantised; embeddings, norms and the output layer are not.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from steermoe.errors import UserError

BYTES = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}  # of a weight: its code, its share of its block's scales
KINDS = ("none", *BYTES)


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"llm_conf.quantization: {kind!r} is not one of {', '.join(KINDS)}")


def bitsandbytes_config(kind: str, dtype: torch.dtype):
    """transformers' configuration for `from_pretrained`, None for "none". dtype: what the quantised layers compute in.

    UserError if bitsandbytes is needed and not installed.
    """
    if kind == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"llm_conf.quantization: {kind} needs the Python package bitsandbytes: pip install bitsandbytes") from None
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of float16 inside and of missing kernels at every step
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantised_linears(llm: nn.Module) -> list[nn.Linear]:
    """The layers that quantisation concerns, of a model that is quantised or of one that is not."""
    output = llm.get_output_embeddings()
    return [module for module in llm.modules() if isinstance(module, nn.Linear) and module is not output]


def keep_differentiable(llm: nn.Module) -> None:
    """Call before the first forward. On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first forward without
    gradients into a form that gradients do not pass through, and says nothing.
    """
    for linear in quantised_linears(llm):
        if hasattr(linear, "support_avx512bf16_for_cpu"):
            linear.support_avx512bf16_for_cpu = False
