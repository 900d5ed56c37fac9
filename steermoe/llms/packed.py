"""Linear layers of a frozen bfloat16 LLM laid out as oneDNN reads them: for decoding on a CPU, where a token's step reads every weight.

torch's own layout is turned into this one at every call, which with a few rows takes as long again as the product itself. The numbers
are the same bit for bit; gradients do not pass. The operators are those that torch's compiler writes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 16  # for which the layout is chosen; others are right too


class PackedLinear(nn.Module):
    """linear: bfloat16, on a CPU. Its weight is copied, and no longer needed."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> Tensor:
        """A copy in torch's layout."""
        return self.packed.to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) bfloat16 -> (..., out_features). RuntimeError where a gradient would be lost."""
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("this LLM is packed for decoding, no gradient passes through it: make the model by SteerMoE.from_config")
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack(llm: nn.Module) -> None:
    """Every nn.Linear that can be packed, in place; all others, and everything where oneDNN has no bfloat16, stay as they are."""
    operators = torch.ops.mkldnn
    if not (hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight") and supported()):
        return
    for parent in list(llm.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child))


def supported() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
