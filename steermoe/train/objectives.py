"""Training objectives. One is a callable (model, batch, step) -> Loss; a new one is a class here (or anywhere) and a registry line.

step: from 1, in training; None in validation, where the loss must be the same at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from steermoe.ctc import ctc_loss
from steermoe.data.collator import Batch
from steermoe.errors import UserError
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
        return with_auxiliary(model, Loss(total, len(targets_r), {"accuracy": likeliest(logits_rv, targets_r)}))


class Joint:
    """Next-token loss, CTC in the LLM's embedding space and distillation, weighted; CTC needs the projector `token`.

    ctc_steps: the first steps train on CTC alone and do not run the LLM. distill: KL divergence per answer token from what the
    LLM says after the reference text's own embeddings to what it says after the audio (as in Ultravox).
    """

    def __init__(self, *, next_token: float = 1.0, ctc: float = 0.3, distill: float = 0.0, ctc_steps: int = 0):
        if min(next_token, ctc, distill, ctc_steps) < 0 or next_token + ctc + distill == 0:
            raise UserError("objective_conf: next_token, ctc, distill and ctc_steps are 0 or more, and one of the weights is over 0")
        self.next_token, self.ctc, self.distill, self.ctc_steps = next_token, ctc, distill, ctc_steps

    def __call__(self, model: SteerMoE, batch: Batch, step: int | None = None) -> Loss:
        """Units are answer tokens, the end token among them."""
        if not hasattr(model.projector, "hear"):
            raise UserError("objective joint: CTC needs scores of tokens; set `projector: token`")
        scores_buv, lens_b = model.projector.hear(*model.hear(batch), model.encoder.final_norm)
        targets_by, target_lens_b = answers(batch)
        ctc = ctc_loss(scores_buv, lens_b, *model.projector.units.spell(targets_by, target_lens_b))
        units = int(target_lens_b.sum()) + len(target_lens_b)
        stats = {"ctc": float(ctc.detach())}
        if (step is not None and step <= self.ctc_steps) or not (self.next_token or self.distill):
            return with_auxiliary(model, Loss(ctc, units, stats))
        logits_rv, targets_r = model(batch, model.projector.read(scores_buv, lens_b))
        logprobs_rv = logits_rv.float().log_softmax(-1)
        spoken = nnf.nll_loss(logprobs_rv, targets_r, reduction="sum")
        total = self.ctc * ctc + self.next_token * spoken
        stats |= {"next_token": float(spoken.detach()), "accuracy": likeliest(logits_rv, targets_r)}
        if self.distill:
            with torch.no_grad():
                read_rv = model(batch, (model.llm.embed(targets_by), target_lens_b)).logits_rv.float().log_softmax(-1)
            divergence = nnf.kl_div(logprobs_rv, read_rv, reduction="sum", log_target=True)
            total = total + self.distill * divergence
            stats["distill"] = float(divergence.detach())
        return with_auxiliary(model, Loss(total, units, stats))


@torch.no_grad()
def likeliest(logits_rv: Tensor, targets_r: Tensor) -> float:
    """How many targets no other token is likelier than. (argmax takes twenty times as long on a CPU.)"""
    return float((logits_rv.gather(1, targets_r[:, None]) >= logits_rv.amax(-1, keepdim=True)).sum())


def with_auxiliary(model: SteerMoE, loss: Loss) -> Loss:
    """Adds, for every unit, what the projector's modules have kept as `auxiliary` in their last forward: MoEAdapter's balance
    loss, in training. The dev loss goes without it, so that it compares projectors of all kinds.
    """
    found = [module.auxiliary for module in model.projector.modules() if getattr(module, "auxiliary", None) is not None]
    if not found:
        return loss
    auxiliary = loss.units * sum(found)
    return Loss(loss.total + auxiliary, loss.units, loss.stats | {"auxiliary": float(auxiliary.detach())})


def answers(batch: Batch) -> tuple[Tensor, Tensor]:
    """The answers' tokens without their end tokens: (B, Y) int64 right-padded with 0, lengths (B,)."""
    lens_b = batch.text_lens_b - batch.answer_at_b - 1
    places_by = torch.arange(int(lens_b.max()), device=lens_b.device)[None]
    inside_by = places_by < lens_b[:, None]
    places_by = (batch.answer_at_b[:, None] + places_by).masked_fill(~inside_by, 0)
    return batch.text_ids_bs.gather(1, places_by).masked_fill(~inside_by, 0), lens_b
