"""Trains a module: gradient accumulation, clipping, warm-up, validation, best checkpoint, early stop, exact resume.

A run killed at any moment and started again ends with the same weights as one that was never interrupted: batches follow from
(seed, epoch), and everything else that moves is in checkpoints/resume.pt. Several processes (distributed.py) share every batch
and take the steps that one would take; any number of them can go on where any other number was.
"""

from __future__ import annotations

import itertools
import json
import math
import signal
import time
from collections import Counter, deque
from pathlib import Path
from typing import Callable, Iterator, Protocol, Sequence

import torch

from steermoe.checkpoint import load_resume, save_resume
from steermoe.config import OptimConf, TrainConf
from steermoe.data.collator import Batch
from steermoe.data.dataset import AudioTextDataset, Example
from steermoe.data.sampler import epoch_batches, share, sorted_batches
from steermoe.errors import UserError
from steermoe.files import append_jsonl, atomic_write, read_jsonl, resume_jsonl
from steermoe.progress import Progress
from steermoe.train import distributed
from steermoe.train.events import EventFile
from steermoe.train.objectives import Loss
from steermoe.train.optim import lr_factor, make_optimizer, set_lr
from steermoe.train.plots import plot_curves

MAX_NONFINITE = 10  # steps running
PLOT_SECONDS = 600  # between drawings of the curves
SHOWN = 120  # characters of a sample's line on the screen
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
    and the step. exp: the experiment folder. watch: () -> (figures for the log line, samples to look at), called at step 0 and
    after each validation; it may draw no random numbers. steermoe.train.watch has the adapter's.
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
        watch: Callable[[], tuple[dict, list[dict]]] | None = None,
    ):
        self.rank, self.size = distributed.rank(), distributed.size()
        self.watch, self.events = watch, EventFile(Path(exp) / "log" / "tensorboard")
        self.model, self.objective, self.collate, self.export = model, objective, collate, export
        self.train_set, self.dev_set, self.exp = train, dev, Path(exp)
        self.conf, self.optim_conf = train_conf, optim_conf
        self.optimizer = make_optimizer(model.parameter_groups(), optim_conf)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.step = self.epoch = self.batches_done = self.nonfinite = self.bad_validations = self.skipped = 0
        self.best_loss = math.inf
        self.unsaved: list[dict] = []  # log lines since the last save
        self.losses: deque[float] = deque(maxlen=50)

    @property
    def resume_path(self) -> Path:
        return self.exp / "checkpoints" / "resume.pt"

    def run(self) -> None:
        """Trains to max_steps or the early stop; leaves checkpoints/{best,last}.safetensors, log/{train,samples}.jsonl,
        log/tensorboard and, in a long training, plots on the way.
        """
        conf, drawn = self.conf, time.monotonic()
        if self.resume_path.is_file():
            self.restore()
        elif self.rank == 0:
            self.log_path.unlink(missing_ok=True)
            self.samples_path.unlink(missing_ok=True)
            self.events.restart([])
        self.check_same()
        if self.step > conf.max_steps:
            raise UserError(f"{self.exp}: already trained for {self.step} steps, train_conf.max_steps is {conf.max_steps}; raise it")
        batches = self.batches()
        self.model.train()
        with (
            Progress("train", conf.max_steps, "step", done=self.step, shown=self.rank == 0) as progress,
            distributed.stop_signal() as stop_signal,
        ):
            if self.step == 0:
                self.look(progress)
            while self.step < conf.max_steps and not self.stopped_early():
                begun = time.monotonic()
                figures = self.optimizer_step([b for b in itertools.islice(batches, conf.accum_grad) if b is not None])
                figures["seconds"] = round(time.monotonic() - begun, 3)
                self.unsaved.append(figures)
                self.losses.extend(filter(math.isfinite, [figures["loss"]]))
                validate = self.step % conf.valid_steps == 0 or self.step == conf.max_steps
                if validate:
                    figures |= self.validate()
                    measured = ", ".join(f"dev {n[4:]} {value:.3f}" for n, value in figures.items() if n.startswith("dev_"))
                    best = " (best)" if figures["best"] else ""
                    progress.write(f"step {self.step}: train loss {self.recent_loss():.3f}, {measured}{best}")
                    figures |= self.look(progress)
                stopped = stop_signal()
                if validate or stopped or self.step % conf.save_steps == 0:
                    self.save()
                if stopped:
                    name = signal.Signals(stopped).name
                    progress.write(f"stopped by {name}; step {self.step} is saved, and the same command goes on there")
                    raise SystemExit(128 + stopped)
                if validate and self.rank == 0 and time.monotonic() - drawn > PLOT_SECONDS:
                    plot_curves(self.log_path, self.exp / "plots")
                    drawn = time.monotonic()
                skipped = f", {self.skipped} not finite and skipped" if self.skipped else ""
                progress.update(1, note=f"loss {self.recent_loss():.3f}{skipped}")
        if self.rank == 0:
            self.export("last", self.step)
        if self.stopped_early():
            progress.write(f"stopped early: no better dev loss in {conf.patience} validations")

    def check_same(self) -> None:
        """UserError if the processes do not all train the same from the same step."""
        if len(set(distributed.gather((self.step, len(self.train_set), len(self.dev_set), *self.model.bases().values())))) > 1:
            what = "some processes find other data, models or checkpoints than the rest"
            raise UserError(f"{self.exp}: {what}; these are to be the same files on all machines, best on a disk that they share")

    def batches(self) -> Iterator[Batch | None]:
        """This process's share of every batch, None where that is empty. Endless; goes on behind the batch trained on last."""
        conf = self.conf
        while True:
            self.train_set.epoch = self.epoch
            lengths = self.costs(self.train_set)  # of this epoch: its speeds change them
            epoch = epoch_batches(lengths, conf.batch_frames, conf.max_batch, conf.seed, self.epoch, self.train_set.weights)
            for indices in epoch[self.batches_done :]:
                self.batches_done += 1
                examples = [self.train_set[index] for index in share(indices, self.rank, self.size)]
                yield self.collate(examples).to(self.device) if examples else None
            self.epoch, self.batches_done = self.epoch + 1, 0

    def costs(self, data: AudioTextDataset) -> list[int]:
        """Input frames of every utterance as the encoder pads them: what train_conf.batch_frames limits."""
        return [max(length, self.model.encoder.min_frames) for length in data.lengths()]

    def optimizer_step(self, batches: list[Batch]) -> dict:
        """One step over the accumulated batches of all processes, each target token weighing the same.

        Returns the log line's figures. Where loss or gradient is not finite, weights and optimiser state stay as they are; the
        step counts for the schedule.
        """
        self.step += 1
        # What draws random numbers resumes exactly too; processes draw other ones.
        torch.manual_seed(self.conf.seed * 1_000_003 + self.step + (self.rank << 40))
        set_lr(self.optimizer, lr_factor(self.step, self.optim_conf, self.conf.max_steps))
        self.optimizer.zero_grad()
        total, units, stats = 0.0, 0, Counter()
        for batch in batches:
            loss = self.objective(self.model, batch, self.step)
            loss.total.backward()
            total, units = total + loss.total.detach(), units + loss.units
            stats.update(loss.stats)
        if self.size > 1:
            total, units, stats = distributed.add_up(total, units, stats)
            distributed.add_gradients(self.parameters)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= units
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.conf.grad_clip or math.inf)
        if torch.isfinite(norm + total):
            self.optimizer.step()
            self.nonfinite = 0
        else:
            self.nonfinite += 1
            self.skipped += 1
            if self.nonfinite == MAX_NONFINITE:
                raise UserError(f"step {self.step}: the gradient was not finite in {MAX_NONFINITE} steps running; {NONFINITE_FIX}")
        rates = {f"lr_{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        means = {name: value / units for name, value in stats.items()}
        figures = {"step": self.step, "epoch": self.epoch, "loss": float(total) / units, **means, "grad_norm": float(norm)}
        return figures | rates | {"skipped": self.skipped}

    @torch.no_grad()
    def validate(self) -> dict:
        """Loss and the objective's other figures per unit over the whole dev set; keeps the best tensors."""
        conf = self.conf
        self.model.eval()
        total, units, stats, bad = 0.0, 0, Counter(), []
        batches = sorted_batches(self.costs(self.dev_set), conf.batch_frames, conf.max_batch)
        mine = batches[self.rank :: self.size]
        with Progress("validation", len(mine), "batch", shown=self.rank == 0, inner=True) as progress:
            for indices in mine:
                loss = self.dev_objective(indices)
                bad += [] if torch.isfinite(loss.total) else [indices]
                total, units = total + float(loss.total), units + loss.units
                stats.update(loss.stats)
                progress.update(1)
        total, units, stats = distributed.add_up(total, units, stats)
        bad = sum(distributed.gather(bad), [])
        if bad:
            guilty = [index for index in bad[0] if not torch.isfinite(self.dev_objective([index]).total)] or bad[0]
            names = ", ".join(self.dev_set.entries[index]["utt"] for index in guilty)
            where = f"in {len(bad)} of {len(batches)} batches, in the first of them because of {names}"
            raise UserError(f"step {self.step}: the dev loss is {total} {where}; {NONFINITE_FIX}")
        self.model.train()
        dev_loss = total / units
        best = dev_loss < self.best_loss
        self.bad_validations = 0 if best else self.bad_validations + 1
        if best:
            self.best_loss = dev_loss
            if self.rank == 0:
                self.export("best", self.step)
        return {"dev_loss": dev_loss, **{f"dev_{n}": v / units for n, v in stats.items()}, "best": best}

    def dev_objective(self, indices: list[int]) -> Loss:
        return self.objective(self.model, self.collate([self.dev_set[index] for index in indices]).to(self.device))

    def look(self, progress: Progress) -> dict:
        """Appends the watch's samples to log/samples.jsonl, shows them shortened, and returns its figures."""
        if self.watch is None or self.rank > 0:
            return {}
        begun = time.monotonic()
        self.model.eval()
        figures, samples = self.watch()
        self.model.train()
        self.samples_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.samples_path, "a", encoding="utf-8") as stream:
            for sample in samples:
                append_jsonl(stream, {"step": self.step, **sample})
                for name in ("label", "hyp", "ctc"):
                    if name in sample:
                        progress.write(f"  {name:5} {' '.join(sample[name].split())[:SHOWN]}")
        return figures | {"watch_seconds": round(time.monotonic() - begun, 3)}

    def stopped_early(self) -> bool:
        return 0 < self.conf.patience <= self.bad_validations

    def recent_loss(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    def save(self) -> None:
        """The log first: a kill in between leaves lines that `restore` cuts off again."""
        if self.rank > 0:
            self.unsaved.clear()
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "a", encoding="utf-8") as stream:
            stream.writelines(map(log_line, self.unsaved))
        self.events.append(self.unsaved)
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
        self.losses.extend(line["loss"] for line in kept[-50:] if line["loss"] is not None and math.isfinite(line["loss"]))
        self.skipped = kept[-1].get("skipped", 0) if kept else 0
        if self.rank > 0:
            return
        with atomic_write(self.log_path) as stream:
            stream.writelines(map(log_line, kept))
        self.events.restart(kept)
        looked = [line for line in resume_jsonl(self.samples_path) if line["step"] <= self.step]
        with atomic_write(self.samples_path) as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in looked)

    @property
    def log_path(self) -> Path:
        return self.exp / "log" / "train.jsonl"

    @property
    def samples_path(self) -> Path:
        return self.exp / "log" / "samples.jsonl"


def log_line(figures: dict) -> str:
    """JSON has no number for what is not finite: null."""
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in figures.items()}
    return json.dumps(finite) + "\n"


COUNTERS = ("step", "epoch", "batches_done", "nonfinite", "bad_validations", "best_loss")
