"""Error rates of groups of utterances as PNG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from steermoe.score.html import Group


def plot_groups(groups: Sequence["Group"], path: Path, label: str, measure: str) -> None:
    """Horizontal bars with their 95 % intervals, the first group on top; groups without reference words have no rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [group for group in groups if group.words]
    places = list(range(len(groups)))
    # a resample may hold no reference word at all: its rate is infinite, the whisker then ends at the rate itself
    high = [group.high if group.high < float("inf") else group.rate for group in groups]
    below = [max(group.rate - group.low, 0.0) for group in groups]
    above = [max(top - group.rate, 0.0) for group, top in zip(groups, high)]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.28 * max(len(groups), 1)))
    axes.barh(places, [group.rate for group in groups], xerr=[below, above], color="#5b8db8", ecolor="#333333", capsize=2)
    # names are any text: no dollar sign in them begins a formula
    axes.set_yticks(places, labels=[f"{group.name} ({group.utterances})" for group in groups], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel=f"{measure} %, 95 % interval", ylabel=f"{label} (utterances)")
    axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=120, bbox_inches="tight")
    os.replace(temporary, path)
    pyplot.close(figure)
