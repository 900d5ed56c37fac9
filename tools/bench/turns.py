"""Variants that take turns, and the table of how much longer each takes than ours."""

from __future__ import annotations

import os
import statistics
import time
from typing import Callable, NamedTuple, Sequence

from steermoe.environment import describe
from steermoe.progress import Progress


class Times(NamedTuple):
    """Seconds of every round; empty where there was no memory for it. peak: GiB of GPU memory, None on the CPU."""

    wall: list[float]
    cpu: list[float]
    peak: float | None = None


def take_turns(variants: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Times]:
    """Runs all variants `rounds` times, one after the other in each round, after one round that is not counted.

    Processor time is that of all threads and of processes that have been waited for.
    """
    times = {name: Times([], []) for name in variants}
    gone: set[str] = set()
    with Progress("bench", (rounds + 1) * len(variants), "run") as progress:
        for count in range(-1, rounds):
            for name, variant in variants.items():
                progress.update(1, note=name)
                if name in gone:
                    continue
                wall, cpu, peak = time.perf_counter(), processor_seconds(), None
                try:
                    if device == "cuda":
                        peak = on_gpu(variant)
                    else:
                        variant()
                except MemoryError:
                    gone.add(name)
                    times[name] = Times([], [])
                    continue
                if count >= 0:
                    times[name].wall.append(time.perf_counter() - wall)
                    times[name].cpu.append(processor_seconds() - cpu)
                    times[name] = times[name]._replace(peak=peak)
    return times


def on_gpu(variant: Callable[[], object]) -> float:
    """Runs it to its end. -> the most memory that was in use, GiB. MemoryError where there is not enough."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    try:
        variant()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise MemoryError from None
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def processor_seconds() -> float:
    return sum(os.times()[:4])


def ratios(times: dict[str, Times], name: str, ours: str, clock: str) -> list[float]:
    """How many times as long as ours, round by round."""
    return [other / own for other, own in zip(getattr(times[name], clock), getattr(times[ours], clock))]


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median (least to most)."""
    if not values:
        return "out of memory"
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def rows(times: dict[str, Times], ours: str, clock: str, columns: dict[str, Callable] | None = None) -> list[list[str]]:
    """Head and lines of the table. columns: further ones, from the median of a variant's seconds."""
    peaks = any(taken.peak is not None for taken in times.values())
    table = [["variant", f"seconds ({clock})", f"x {ours}", *(columns or {}), *(["GPU memory, GiB"] if peaks else [])]]
    for name, taken in times.items():
        seconds = getattr(taken, clock)
        more = [column(statistics.median(seconds)) if seconds else "" for column in (columns or {}).values()]
        peak = ["" if taken.peak is None else f"{taken.peak:.1f}"] if peaks else []
        table.append([name, spread(seconds, "{:.3g}"), spread(ratios(times, name, ours, clock)), *more, *peak])
    return table


def print_report(title: str, table: list[list[str]], notes: Sequence[str], args) -> None:
    """Title, machine, table, notes; as Markdown on request."""
    notes = [f"Median (least to most) of {args.rounds} rounds in which the variants take turns.", *notes]
    if args.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        print(f"## {title}\n\n{machine()}\n\n{lines[0]}\n{'|---' * len(table[0])}|")
        print("\n".join(lines[1:]) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
        return
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"{title}\n{machine()}\n")
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("\n" + "\n".join(notes))


def machine() -> str:
    import torch

    about = describe()
    gpu = "" if about["gpu"] == "none" else f", {about['gpu']}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = f"torch {about['torch']}, transformers {about['transformers']}"
    return f"{about['processor']}{gpu}, {torch.get_num_threads()} threads{load}; {versions}, git {about['git']}"
