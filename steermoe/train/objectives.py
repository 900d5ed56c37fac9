"""Training objectives. One is a callable (model, batch, step) -> Loss; a new one is a class here (or anywhere) and a registry line.

step: from 1, in training; None in validation, where the loss must be the same at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as nnf
from torch import Tensor

from steermoe.data.collator import Batch
from steermoe.model import SteerMoE


class Loss(NamedTuple):
    """total: differentiable float32 sum over the batch's units; units: how many (what the trainer divides by, across
    accumulated batches); stats: sums of further figures over the same units, for the log.
    """

    total: Tensor
    units: int
    stats: dict[str, float]


class NextToken:
    """Equation 5: - sum_t log p(y_t | P_audio, prompt, y_<t) over the answer and its end token, nothing else."""

    def __init__(self):
        pass

    def __call__(self, model: SteerMoE, batch: Batch, step: int | None = None) -> Loss:
        logits_rv, targets_r = model(batch)
        total = nnf.cross_entropy(logits_rv.float(), targets_r, reduction="sum")
        right = (logits_rv.detach().argmax(-1) == targets_r).sum()
        return Loss(total, len(targets_r), {"accuracy": float(right)})
