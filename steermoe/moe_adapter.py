"""MoE-Adapter (arXiv 2601.02967): a sparse mixture of experts between encoder and LLM, beside a shared expert that is always on.

Shape legend: B batch, T encoder frames, U = ceil(T / kernel) stacked frames, K = kernel * encoder width, D the adapter's width,
E routed experts, W the width of one, S the shared expert's, H LLM width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steermoe.errors import UserError
from steermoe.masks import length_mask
from steermoe.projector import stack_frames


class MoEAdapter(nn.Module):
    """y = LayerNorm(sum over the top k of p_i E_i(x) + shared(x)), p = softmax(x W_g), E_i(x) = W2_i SiLU(W1_i x).

    x: `kernel` stacked frames through LayerNorm, a linear layer, SiLU and LayerNorm to dim (D). num_experts: E; 0 leaves the
    shared expert alone, which with shared_width 20480 is the dense adapter of the paper's comparison. top_k: experts of a frame;
    their p are not scaled to sum to 1. expert_width: W. shared_width: S, as wide as the 8 routed ones in the paper's sizes.
    balance: lambda of the load-balance loss, which the paper leaves open; this is Switch Transformer's (arXiv 2101.03961).
    The defaults are the published sizes, for an LLM of width 2048.

    auxiliary: the load-balance loss of the last batch in training, a scalar; None in eval mode and without routed experts.
    """

    auxiliary: Tensor | None = None

    def __init__(
        self, encoder_dim: int, llm_dim: int, *, kernel: int = 4, dim: int = 2560, num_experts: int = 8, top_k: int = 4,
        expert_width: int = 1280, shared_width: int = 10240, balance: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        least = {"kernel": (kernel, 1), "dim": (dim, 1), "expert_width": (expert_width, 1), "shared_width": (shared_width, 1)}
        for key, (value, low) in (least | {"num_experts": (num_experts, 0), "balance": (balance, 0)}).items():
            if value < low:
                raise UserError(f"projector_conf.{key}: {value} is below {low}")
        if num_experts and not 1 <= top_k <= num_experts:
            raise UserError(f"projector_conf.top_k: {top_k} is not from 1 to {num_experts}, the number of experts")
        self.kernel, self.num_experts, self.top_k, self.balance = kernel, num_experts, top_k, balance
        stacked = kernel * encoder_dim
        self.enter = nn.Sequential(nn.LayerNorm(stacked), nn.Linear(stacked, dim), nn.SiLU(), nn.LayerNorm(dim))
        self.shared_up = nn.Linear(dim, shared_width, bias=False)
        self.shared_down = nn.Linear(shared_width, llm_dim, bias=False)
        if num_experts:
            self.router = nn.Linear(dim, num_experts, bias=False)  # W_g
            self.routed_up = matrices(num_experts, dim, expert_width)  # W1
            self.routed_down = matrices(num_experts, expert_width, llm_dim)  # W2
        self.leave = nn.LayerNorm(llm_dim)

    def forward(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, encoder width) any float dtype, lens_b (B,) int64 -> P_audio (B, U, H) float32, audio_lens_b (B,)."""
        stacked_buk, audio_lens_b = stack_frames(final_norm(hidden_btd), lens_b, self.kernel)
        x_bud = self.enter(stacked_buk.to(self.shared_up.weight.dtype))
        y_buh = self.shared_down(nnf.silu(self.shared_up(x_bud)))
        if self.num_experts:
            y_buh = y_buh + self.routed(x_bud, audio_lens_b)
        return self.leave(y_buh), audio_lens_b

    def routed(self, x_bud: Tensor, lens_b: Tensor) -> Tensor:
        """(B, U, D) -> the weighted sum of each frame's top k experts (B, U, H); keeps the load-balance loss.

        All experts compute, and those that are not chosen weigh 0: at a dozen frames a second that is little beside encoder and
        LLM, and an utterance gives the same result in any batch.
        """
        p_bue = self.router(x_bud).softmax(-1)
        chosen_bue = torch.zeros_like(p_bue).scatter(-1, p_bue.topk(self.top_k, -1).indices, 1.0)
        valid_bu1 = length_mask(lens_b, x_bud.shape[1])[..., None]
        self.auxiliary = self.balance * load_balance(p_bue, chosen_bue, valid_bu1) if self.training else None
        inside_buew = nnf.silu(torch.einsum("bud,edw->buew", x_bud, self.routed_up))
        return torch.einsum("buew,ewh->buh", inside_buew * (p_bue * chosen_bue)[..., None], self.routed_down)

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"projector": dict(self.named_parameters())}


def matrices(count: int, inputs: int, outputs: int) -> nn.Parameter:
    """(count, inputs, outputs), each initialised as torch.nn.Linear's is."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))


def load_balance(p_bue: Tensor, chosen_bue: Tensor, valid_bu1: Tensor) -> Tensor:
    """E * sum_e Pbar_e fbar_e over the real frames: 1 when all experts are chosen equally often, E when one has everything.

    p_bue (B, U, E) float: routing probabilities; chosen_bue: 1.0 for a frame's experts, else 0; valid_bu1 (B, U, 1) bool.
    Pbar_e: mean probability of an expert. fbar_e: its share of all choices, so that it sums to 1 whatever the top k. Scalar,
    differentiable in p.
    """
    mean_e = (p_bue * valid_bu1).sum((0, 1)) / valid_bu1.sum()
    taken_e = (chosen_bue * valid_bu1).sum((0, 1))
    return p_bue.shape[-1] * (mean_e * taken_e / taken_e.sum()).sum()
