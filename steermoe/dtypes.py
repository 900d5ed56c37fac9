"""Which floating-point type the frozen parts run in."""

from __future__ import annotations

import torch

from steermoe.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve_dtype(name: str) -> torch.dtype:
    """"auto" is bfloat16 where the machine multiplies it natively (GPUs since 2020, AVX512-BF16 or AMX), else float32."""
    if name == "auto":
        return torch.bfloat16 if _native_bfloat16() else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype: {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _native_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
