"""A projector that looks at its neighbours: gated convolutions over the steered frames, for CTC on units shorter than words.

Whisper's frames leave the cutting into letters to its decoder; a few convolutions do it here, with 1 to 3 M parameters.
Shape legend: B batch, T encoder frames, D the projector's width, U = ceil(T / kernel) pooled frames, H LLM width.
Source: the convolution module and feed-forward layer of Gulati et al. 2020, "Conformer" (arXiv 2005.08100), without attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steermoe.errors import UserError
from steermoe.masks import length_mask
from steermoe.projector import masked_pool


class ConvProjector(nn.Module):
    """Linear to dim (D), blocks of convolution and feed-forward, masked average pooling, linear to the LLM's width.

    kernel: frames in a pool (1: all of the encoder's 50 a second, which spelling needs). reach: frames that a convolution sees,
    odd. dropout: in training.
    """

    def __init__(
        self, encoder_dim: int, llm_dim: int, *, kernel: int = 1, dim: int = 256, blocks: int = 2, reach: int = 15, dropout: float = 0.1
    ):
        super().__init__()
        for key, value in {"kernel": kernel, "dim": dim, "blocks": blocks, "reach": reach}.items():
            if value < 1:
                raise UserError(f"projector_conf.{key}: {value}; at least 1 is needed")
        if reach % 2 == 0:
            raise UserError(f"projector_conf.reach: {reach} is even; a convolution that keeps the number of frames needs an odd one")
        if not 0 <= dropout < 1:
            raise UserError(f"projector_conf.dropout: {dropout} is not from 0 to below 1")
        self.kernel = kernel
        self.enter = nn.Linear(encoder_dim, dim)
        self.blocks = nn.ModuleList(ConvBlock(dim, reach, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.leave = nn.Linear(dim, llm_dim)

    def forward(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, encoder width) any float dtype, lens_b (B,) -> P_audio (B, U, H) float32, audio_lens_b (B,) int64."""
        mask_bt = length_mask(lens_b, hidden_btd.shape[1])
        with torch.autocast(hidden_btd.device.type, hidden_btd.dtype, enabled=hidden_btd.dtype == torch.bfloat16):
            x_btd = self.enter(final_norm(hidden_btd))
            for block in self.blocks:
                x_btd = block(x_btd, mask_bt)
            pooled_bud, audio_lens_b = masked_pool(self.norm(x_btd.float()), lens_b, self.kernel)
        return self.leave(pooled_bud), audio_lens_b

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"projector": dict(self.named_parameters())}


class ConvBlock(nn.Module):
    """x + W2 SiLU(LN(depthwise(GLU(W1 LN(x))))), then x + W4 SiLU(W3 LN(x))."""

    def __init__(self, dim: int, reach: int, dropout: float):
        super().__init__()
        self.conv_norm, self.middle_norm, self.ffn_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, reach, padding=reach // 2, groups=dim)
        self.mix = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor, mask_bt: Tensor) -> Tensor:
        gated_btd = nnf.glu(self.gate(self.conv_norm(x_btd))).masked_fill(~mask_bt[..., None], 0.0)
        near_btd = self.depthwise(gated_btd.transpose(1, 2)).transpose(1, 2)
        x_btd = x_btd + self.dropout(self.mix(nnf.silu(self.middle_norm(near_btd))))
        return x_btd + self.dropout(self.down(self.dropout(nnf.silu(self.up(self.ffn_norm(x_btd))))))
