"""Training curves as PNG."""

from __future__ import annotations

import os
from pathlib import Path

from steermoe.files import read_jsonl

SMOOTHED = 50  # steps
LABELS = {
    "loss": "per target token (nat)",
    "accuracy": "share of target tokens",
    "lr": "learning rate",
    "grad_norm": "before clipping",
    "scales": "alpha of each layer",
    "gate_entropy": "mean over dev frames (nat)",
    "expert_share": "layer, its experts",
}


def plot_curves(log: str | Path, folder: str | Path) -> None:
    """log/train.jsonl -> loss.png and a file for each other part of the objective (training, smoothed, and dev), lr.png,
    grad_norm.png, and where the adapter steers scales.png, gate_entropy.png and expert_share.png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(read_jsonl(log))
    names = {name for line in lines for name in line}
    for name in sorted(names):
        if f"dev_{name}" in names or name == "grad_norm":
            found = {f"train (mean of {SMOOTHED} steps)": _smooth(*_series(lines, name)), "dev": _series(lines, f"dev_{name}")}
            _draw(pyplot, folder, name, _lines, found, "log" if name == "grad_norm" else "linear")
        elif name in ("scales", "gate_entropy"):
            steps, values = _series(lines, name)
            found = {f"layer {layer}": (steps, column) for layer, column in enumerate(zip(*values))}
            _draw(pyplot, folder, name, _lines, found)
        elif name == "expert_share":
            _draw(pyplot, folder, name, _shares, _series(lines, name))
    found = {name: _series(lines, name) for name in sorted(names) if name.startswith("lr_")}
    _draw(pyplot, folder, "lr", _lines, found, "log")


def _draw(pyplot, folder: str | Path, name: str, draw, *content) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    draw(axes, *content)
    axes.set(xlabel="step", ylabel=LABELS.get(name, "per target token"), title=name)
    temporary = Path(folder) / f".{name}.{os.getpid()}.png"
    figure.savefig(temporary, dpi=120, bbox_inches="tight")
    os.replace(temporary, Path(folder) / f"{name}.png")
    pyplot.close(figure)


def _lines(axes, curves: dict[str, tuple[list, list]], scale: str = "linear") -> None:
    """Up to ten curves take their colours from the usual cycle, more are shaded from the first to the last."""
    from matplotlib import colormaps

    curves = {label: (xs, ys) for label, (xs, ys) in curves.items() if xs}
    for index, (label, (xs, ys)) in enumerate(curves.items()):
        colour = f"C{index}" if len(curves) <= 10 else colormaps["viridis"](index / (len(curves) - 1))
        axes.plot(xs, ys, label=label, color=colour, marker="." if len(xs) == 1 else None)
    axes.set_yscale(scale)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(ncols=-(-len(curves) // 16), fontsize="small" if len(curves) > 4 else None)


def _shares(axes, series: tuple[list, list]) -> None:
    """A row for each expert of each layer, from the first layer on top; brightness is the share of a layer's gates."""
    steps, shares = series  # shares: for every step L lists of N numbers
    layers, experts = len(shares[0]), len(shares[0][0])
    rows = [[share[layer][expert] for share in shares] for layer in range(layers) for expert in range(experts)]
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", vmin=0, extent=(-0.5, len(steps) - 0.5, len(rows), 0))
    axes.set_yticks([layer * experts for layer in range(layers)], range(layers))
    ticks = range(0, len(steps), -(-len(steps) // 8))
    axes.set_xticks(ticks, [steps[tick] for tick in ticks])
    axes.figure.colorbar(image, label=f"mean gate (even: {1 / experts:.3f})")


def _series(lines: list[dict], name: str) -> tuple[list, list]:
    """Steps and values of the lines that have the figure as something finite."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(steps: list, values: list[float]) -> tuple[list, list[float]]:
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - SMOOTHED] if index >= SMOOTHED else 0.0)
        means.append(total / min(index + 1, SMOOTHED))
    return steps, means
