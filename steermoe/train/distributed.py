"""Data-parallel training by the processes that torchrun starts: each has the whole model and takes its share of every batch.

Before an optimiser step gradients and figures are added up over the processes, so that all of them take the step that one would
take with whole batches. Rank 0 alone writes files and shows progress. Without torchrun nothing here communicates.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from steermoe.errors import UserError


def join(device: str) -> str:
    """Joins the other processes, if torchrun has started several: gloo between CPUs, nccl between GPUs.

    device: "cpu" or "cuda". -> the device of this process, its own GPU for "cuda". UserError if the machine lacks one for it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device == "cpu":
        dist.init_process_group("gloo")
        return device
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"process {local + 1} on a machine with {gpus} GPU{'s' * (gpus != 1)}; give --nproc-per-node {gpus}")
    torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl")  # gloo for figures: who waits for those notices at once that another has died
    return f"cuda:{local}"


def leave() -> None:
    """After the last step, when all others have taken it too."""
    if size() > 1:
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def gather(value: Any) -> list:
    """The value of every process, by rank. UserError if one of them has ended."""
    values = [value] * size()
    if len(values) > 1:
        with _connected():
            dist.all_gather_object(values, value)
    return values


def add_up(total: float, units: int, stats: dict[str, float]) -> tuple[float, int, Counter]:
    """Sums over the processes, in the order of their ranks: the same bits everywhere."""
    totals, counts, figures = zip(*gather((float(total), units, dict(stats))))
    sums: Counter = Counter()
    for figure in figures:
        sums.update(figure)
    return sum(totals), sum(counts), sums


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients become their sums over the processes; a parameter keeps None where no process has a gradient for it."""
    found = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([found, *(grad.float().flatten() for grad in grads)])
    with _connected():
        dist.all_reduce(flat)
    found, *sums = flat.split([len(found), *(p.numel() for p in parameters)])
    for parameter, added, count in zip(parameters, sums, found.tolist()):
        parameter.grad = added.view_as(parameter).to(parameter.dtype) if count else None


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Within it SIGTERM and SIGINT wait for the end of the step. Yields a function for all processes to call there: the signal
    that one of them has received, 0 for none. One whose torchrun is gone counts as stopped. A lone process is stopped at once,
    as ever.
    """
    if size() == 1:
        yield lambda: 0
        return
    received, launcher = [0], os.getppid()

    def note(number: int, _) -> None:
        received[0] = number

    def stopped() -> int:
        return max(gather(received[0] or (0 if os.getppid() == launcher else int(signal.SIGTERM))))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"process {rank()} has lost another one, whose own message says why it ended ({reason})") from None
