"""Layer-wise steering by a soft mixture of expert vectors: equations 1 to 3 of SteerMoE (arXiv 2510.13558).

Shape legend: B batch, T frames, D encoder width, L encoder layers, N experts.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from steermoe.errors import UserError


class MoESteering(nn.Module):
    """H'_l = H_l + alpha_l softmax(H_l W_l + b_l) E_l after every encoder layer l.

    num_experts: N. scale: initial alpha_l. init_std: standard deviation of the initial expert vectors (authors' code: 0.01).
    Beyond the paper: shared_router: one router D x N reads every layer, where the paper's D x (L*N) matrix has a slice for each;
    top_k: a frame keeps its k largest gates, scaled to sum to 1 (KeepTopK of Shazeer et al. 2017, arXiv 1701.06538, equations
    3 and 5, without the noise); 0 keeps all.
    """

    def __init__(
        self, num_layers: int, dim: int, *, num_experts: int = 8, scale: float = 0.1, init_std: float = 0.01,
        shared_router: bool = False, top_k: int = 0,
    ):  # fmt: skip
        super().__init__()
        if num_experts < 1:
            raise UserError(f"steering_conf.num_experts: {num_experts} experts; at least 1 is needed")
        if not 0 <= top_k <= num_experts:
            raise UserError(f"steering_conf.top_k: {top_k} is not from 0 (all) to {num_experts}, the number of experts")
        self.shared_router, self.top_k = shared_router, top_k
        routers = 1 if shared_router else num_layers
        bound = 1 / math.sqrt(dim)  # torch.nn.Linear's default: the paper's router is one D -> L*N linear layer, stored by slices
        self.experts = nn.Parameter(torch.randn(num_layers, num_experts, dim) * init_std)  # E
        self.router_weight = nn.Parameter(torch.empty(routers, dim, num_experts).uniform_(-bound, bound))  # W
        self.router_bias = nn.Parameter(torch.empty(routers, num_experts).uniform_(-bound, bound))  # b
        self.scales = nn.Parameter(torch.full((num_layers,), float(scale)))  # alpha

    def gates(self, layer: int, hidden_btd: Tensor) -> Tensor:
        """Equation 1: g_l = softmax(H_l W_l + b_l). (B, T, D) -> (B, T, N) float32, each frame's gates sum to 1."""
        router = 0 if self.shared_router else layer
        logits_btn = hidden_btd @ self.router_weight[router].to(hidden_btd.dtype)
        logits_btn = logits_btn.float() + self.router_bias[router]
        if not self.top_k:
            return logits_btn.softmax(-1)
        kept = logits_btn.topk(self.top_k, -1)
        return torch.zeros_like(logits_btn).scatter(-1, kept.indices, kept.values.softmax(-1))

    def forward(self, layer: int, hidden_btd: Tensor) -> Tensor:
        """hidden_btd (B, T, D) after layer `layer` -> the same shape and dtype for the next layer."""
        gates_btn = self.gates(layer, hidden_btd)
        scaled_nd = self.scales[layer] * self.experts[layer]
        delta_btd = gates_btn.to(hidden_btd.dtype) @ scaled_nd.to(hidden_btd.dtype)  # equation 2, alpha_l folded into E_l
        return hidden_btd + delta_btd  # equation 3

    @torch.no_grad()
    def scale_experts(self, mask: str) -> None:
        """Switches experts off (0) or makes them weaker or stronger: `1:3=0,2:*=0.5` is LAYER:EXPERT=FACTOR, * for all.

        UserError for what is not of that form, or an expert that is not there.
        """
        layers, experts = self.experts.shape[:2]
        for word in mask.split(","):
            found = re.fullmatch(r"(\d+|\*):(\d+|\*)=(-?\d+(?:\.\d+)?)", word.strip())
            if not found:
                raise UserError(f"--expert-mask {mask}: {word!r} is not LAYER:EXPERT=FACTOR, as in 1:3=0 or 2:*=0.5")
            layer, expert = (slice(None) if place == "*" else int(place) for place in found.groups()[:2])
            if layer != slice(None) and layer >= layers or expert != slice(None) and expert >= experts:
                raise UserError(f"--expert-mask {mask}: {word!r}: layers are 0 to {layers - 1}, experts 0 to {experts - 1}")
            self.experts[layer, expert] *= float(found[3])

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """The paper's learning-rate groups: vectors and scales apart from the router."""
        groups: dict[str, dict[str, nn.Parameter]] = {"steering": {}, "router": {}}
        for name, parameter in self.named_parameters():
            groups["router" if name.startswith("router") else "steering"][name] = parameter
        return groups


class NoSteering(nn.Module):
    """The static adapter of the paper's ablation: hidden states pass unchanged."""

    def __init__(self, num_layers: int, dim: int):
        super().__init__()

    def forward(self, layer: int, hidden_btd: Tensor) -> Tensor:
        return hidden_btd

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {}
