"""Trains a module: gradient accumulation, clipping, warm-up, validation, best checkpoint, early stop, exact resume.

A run killed at any moment and started again ends with the same weights as one that was never interrupted: batches follow from
(seed, epoch), and everything else that moves is in checkpoints/resume.pt.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter, deque
from pathlib import Path
from typing import Callable, Iterator, Protocol, Sequence

import torch

from steermoe.checkpoint import load_resume, save_resume
from steermoe.config import OptimConf, TrainConf
from steermoe.data.collator import Batch
from steermoe.data.dataset import AudioTextDataset, Example
from steermoe.data.sampler import epoch_batches, sorted_batches
from steermoe.errors import UserError
from steermoe.files import atomic_write, read_jsonl
from steermoe.progress import Progress
from steermoe.train.objectives import Loss
from steermoe.train.optim import lr_factor, make_optimizer, set_lr

MAX_NONFINITE = 10
NONFINITE_FIX = "lower optim_conf.lr, or set llm_conf.dtype and encoder_conf.dtype to float32"


class Trainable(Protocol):
    """What can be trained: SteerMoE, or an encoder before it is frozen."""

    encoder: torch.nn.Module  # its `min_frames` is what an utterance costs at least

    def parameter_groups(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """Trained parameters by learning-rate group and name."""

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors, on the CPU."""

    def load_adapter_state(self, tensors: dict[str, torch.Tensor]) -> None: ...

    def bases(self) -> dict[str, str]:
        """SHA-256 of every frozen part; a training goes on only with the same ones."""


class Trainer:
    """objective: as in objectives.py. collate: examples -> Batch. export: writes the trained tensors, given "best" or "last"
    and the step. exp: the experiment folder.
    """

    def __init__(
        self,
        model: Trainable,
        objective: Callable[..., Loss],
        collate: Callable[[Sequence[Example]], Batch],
        export: Callable[[str, int], None],
        train: AudioTextDataset,
        dev: AudioTextDataset,
        exp: str | Path,
        train_conf: TrainConf,
        optim_conf: OptimConf,
    ):
        self.model, self.objective, self.collate, self.export = model, objective, collate, export
        self.train_set, self.dev_set, self.exp = train, dev, Path(exp)
        self.conf, self.optim_conf = train_conf, optim_conf
        self.optimizer = make_optimizer(model.parameter_groups(), optim_conf)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.step = self.epoch = self.batches_done = self.nonfinite = self.bad_validations = 0
        self.best_loss = math.inf
        self.unsaved: list[dict] = []  # log lines since the last save
        self.losses: deque[float] = deque(maxlen=50)

    @property
    def resume_path(self) -> Path:
        return self.exp / "checkpoints" / "resume.pt"

    def run(self) -> None:
        """Trains to max_steps or the early stop; leaves checkpoints/{best,last}.safetensors and log/train.jsonl."""
        conf = self.conf
        if self.resume_path.is_file():
            self.restore()
        else:
            self.log_path.unlink(missing_ok=True)
        if self.step > conf.max_steps:
            raise UserError(f"{self.exp}: already trained for {self.step} steps, train_conf.max_steps is {conf.max_steps}; raise it")
        batches = self.batches()
        self.model.train()
        with Progress("train", conf.max_steps, "step", done=self.step) as progress:
            while self.step < conf.max_steps and not self.stopped_early():
                begun = time.monotonic()
                figures = self.optimizer_step(list(itertools.islice(batches, conf.accum_grad)))
                figures["seconds"] = round(time.monotonic() - begun, 3)
                self.unsaved.append(figures)
                self.losses.append(figures["loss"])
                validate = self.step % conf.valid_steps == 0 or self.step == conf.max_steps
                if validate:
                    figures |= self.validate()
                    measured = ", ".join(f"dev {n[4:]} {value:.3f}" for n, value in figures.items() if n.startswith("dev_"))
                    best = " (best)" if figures["best"] else ""
                    progress.write(f"step {self.step}: train loss {self.recent_loss():.3f}, {measured}{best}")
                if validate or self.step % conf.save_steps == 0:
                    self.save()
                progress.update(1, note=f"loss {self.recent_loss():.3f}")
        self.export("last", self.step)
        if self.stopped_early():
            progress.write(f"stopped early: no better dev loss in {conf.patience} validations")

    def batches(self) -> Iterator[Batch]:
        """Endless; goes on behind the batch that was trained on last."""
        conf = self.conf
        lengths = self.costs(self.train_set)
        while True:
            self.train_set.epoch = self.epoch
            epoch = epoch_batches(lengths, conf.batch_frames, conf.max_batch, conf.seed, self.epoch)
            for indices in epoch[self.batches_done :]:
                self.batches_done += 1
                yield self.collate([self.train_set[index] for index in indices]).to(self.device)
            self.epoch, self.batches_done = self.epoch + 1, 0

    def costs(self, data: AudioTextDataset) -> list[int]:
        """Input frames of every utterance as the encoder pads them: what train_conf.batch_frames limits."""
        return [max(length, self.model.encoder.min_frames) for length in data.lengths()]

    def optimizer_step(self, batches: list[Batch]) -> dict:
        """One step over the accumulated batches, each target token weighing the same. Returns the log line's figures."""
        self.step += 1
        torch.manual_seed(self.conf.seed * 1_000_003 + self.step)  # what draws random numbers resumes exactly too
        set_lr(self.optimizer, lr_factor(self.step, self.optim_conf, self.conf.max_steps))
        self.optimizer.zero_grad()
        total, units, stats = 0.0, 0, Counter()
        for batch in batches:
            loss = self.objective(self.model, batch, self.step)
            loss.total.backward()
            total, units = total + loss.total.detach(), units + loss.units
            stats.update(loss.stats)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= units
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.conf.grad_clip or math.inf)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.nonfinite = 0
        else:
            self.nonfinite += 1
            if self.nonfinite == MAX_NONFINITE:
                raise UserError(f"step {self.step}: the gradient was not finite in {MAX_NONFINITE} steps running; {NONFINITE_FIX}")
        rates = {f"lr_{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        means = {name: value / units for name, value in stats.items()}
        return {"step": self.step, "epoch": self.epoch, "loss": float(total) / units, **means, "grad_norm": float(norm), **rates}

    @torch.no_grad()
    def validate(self) -> dict:
        """Loss and the objective's other figures per unit over the whole dev set; keeps the best tensors."""
        conf = self.conf
        self.model.eval()
        total, units, stats = 0.0, 0, Counter()
        for indices in sorted_batches(self.costs(self.dev_set), conf.batch_frames, conf.max_batch):
            batch = self.collate([self.dev_set[index] for index in indices]).to(self.device)
            loss = self.objective(self.model, batch)
            total, units = total + float(loss.total), units + loss.units
            stats.update(loss.stats)
        self.model.train()
        dev_loss = total / units
        if not math.isfinite(dev_loss):
            raise UserError(f"step {self.step}: the dev loss is {dev_loss}; {NONFINITE_FIX}")
        best = dev_loss < self.best_loss
        self.bad_validations = 0 if best else self.bad_validations + 1
        if best:
            self.best_loss = dev_loss
            self.export("best", self.step)
        return {"dev_loss": dev_loss, **{f"dev_{n}": v / units for n, v in stats.items()}, "best": best}

    def stopped_early(self) -> bool:
        return 0 < self.conf.patience <= self.bad_validations

    def recent_loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    def save(self) -> None:
        """The log first: a kill in between leaves lines that `restore` cuts off again."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in self.unsaved)
        self.unsaved.clear()
        state = {
            "adapter": self.model.adapter_state(),
            "optimizer": self.optimizer.state_dict(),
            "bases": self.model.bases(),
            "counters": {name: getattr(self, name) for name in COUNTERS},
        }
        save_resume(self.resume_path, state)

    def restore(self) -> None:
        """Goes back to the last saved step. UserError if the training state was written under another configuration."""
        state = load_resume(self.resume_path)
        if state.get("bases") != self.model.bases():
            parts = " or ".join(self.model.bases())
            raise UserError(f"{self.resume_path}: trained with other weights of {parts}; bring those back, or remove {self.exp}")
        try:
            self.model.load_adapter_state(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{self.resume_path}: does not fit this configuration ({error}); remove it to train anew") from None
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        kept = list(itertools.islice(read_jsonl(self.log_path), self.step))  # one line a step; the rest was cut off by a kill
        with atomic_write(self.log_path) as stream:
            stream.writelines(json.dumps(line) + "\n" for line in kept)
        self.losses.extend(line["loss"] for line in kept[-50:])

    @property
    def log_path(self) -> Path:
        return self.exp / "log" / "train.jsonl"


COUNTERS = ("step", "epoch", "batches_done", "nonfinite", "bad_validations", "best_loss")
