"""Training curves as PNG."""

from __future__ import annotations

import os
from pathlib import Path

from steermoe.files import read_jsonl


def plot_curves(log: str | Path, folder: str | Path) -> None:
    """log/train.jsonl -> loss.png (training, smoothed, and dev) and lr.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(read_jsonl(log))
    steps = [line["step"] for line in lines]
    validated = [line for line in lines if "dev_loss" in line]
    figures = {
        "loss": {
            "train (mean of 50 steps)": (steps, _smooth([line["loss"] for line in lines], 50)),
            "dev": ([line["step"] for line in validated], [line["dev_loss"] for line in validated]),
        },
        "lr": {key: (steps, [line[key] for line in lines]) for key in lines[0] if key.startswith("lr_")},
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, curves in figures.items():
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for label, (xs, ys) in curves.items():
            axes.plot(xs, ys, label=label)
        axes.set(xlabel="step", ylabel="loss per target token (nat)" if name == "loss" else "learning rate")
        if name == "lr":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
        temporary = Path(folder) / f".{name}.{os.getpid()}.png"
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
        os.replace(temporary, Path(folder) / f"{name}.png")
        pyplot.close(figure)


def _smooth(values: list[float], width: int) -> list[float]:
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means
