"""AdamW with the paper's three learning rates, and the schedule that scales them together."""

from __future__ import annotations

import math

import torch

from steermoe.config import OptimConf


def make_optimizer(groups: dict[str, dict[str, torch.nn.Parameter]], conf: OptimConf) -> torch.optim.AdamW:
    """groups: learning-rate group -> {parameter name: parameter}. Each group is split by weight decay: projection and router
    matrices decay; expert vectors, scales, biases and norms never do. A group whose rate is 0 beside others that
    are not is frozen: it gets no gradient.
    """
    parameter_groups, frozen = [], [name for name in groups if not conf.lr[name] and any(conf.lr.values())]
    for name, parameters in groups.items():
        for parameter in parameters.values():
            parameter.requires_grad_(name not in frozen)
        if name in frozen:
            continue
        decaying = [p for key, p in parameters.items() if name != "steering" and p.dim() > 1 and not key.endswith("bias")]
        others = [p for p in parameters.values() if not any(p is d for d in decaying)]
        for chosen, weight_decay in ((decaying, conf.weight_decay), (others, 0.0)):
            if chosen:
                rate = conf.lr[name]
                parameter_groups.append(
                    {"params": chosen, "name": name, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
                )
    return torch.optim.AdamW(parameter_groups, betas=tuple(conf.betas))


def lr_factor(step: int, conf: OptimConf, max_steps: int) -> float:
    """What the base learning rates are multiplied by in step `step` (from 1): a linear warm-up, then the schedule."""
    if step <= conf.warmup_steps:
        return step / conf.warmup_steps
    progress = (step - conf.warmup_steps) / max(max_steps - conf.warmup_steps, 1)
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[conf.schedule]


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
