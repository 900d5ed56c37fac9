"""An adapter's analysis as a table, heat maps (PNG) and one self-contained page.

Shape legend: T frames of an utterance, L encoder layers, N experts, C letter classes.
"""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from steermoe.analysis.information import Information
from steermoe.analysis.measure import CLASSES, Utterance
from steermoe.files import atomic_write, write_json


class Findings(NamedTuple):
    """scales (L,): alpha. share_ln: mean gates. chosen_ln: how often an expert has the largest gate. entropy_l: mean, nat. ratio_l: mean.
    by_letter_lcn: share of each expert among the frames of a letter class; informations[label][layer].
    """

    scales: list[float]
    share_ln: np.ndarray
    chosen_ln: np.ndarray
    entropy_l: np.ndarray
    ratio_l: np.ndarray
    by_letter_lcn: np.ndarray
    informations: dict[str, list[Information]]


def summarize(scales: Sequence[float], found: list[Utterance], informations: dict[str, list[Information]]) -> Findings:
    frames, experts = sum(one.chosen_lt.shape[1] for one in found), found[0].share_ln.shape[1]
    chosen_lf = np.concatenate([one.chosen_lt for one in found], 1)
    letter_f = np.concatenate([one.letter_t for one in found])
    by_letter = [[np.bincount(row[letter_f == c], minlength=experts) for c in range(len(CLASSES))] for row in chosen_lf]
    counts_lcn = np.array(by_letter, dtype=float)
    return Findings(
        scales=list(scales),
        share_ln=sum(one.share_ln for one in found) / frames,
        chosen_ln=np.array([np.bincount(row, minlength=experts) for row in chosen_lf]) / frames,
        entropy_l=np.concatenate([one.entropy_lt for one in found], 1).mean(1),
        ratio_l=np.concatenate([one.ratio_lt for one in found], 1).mean(1),
        by_letter_lcn=counts_lcn / counts_lcn.sum(2, keepdims=True).clip(1),
        informations=informations,
    )


def table(findings: Findings) -> str:
    """Markdown: a row for each layer, and one for each layer and label."""
    experts = findings.share_ln.shape[1]
    lines = ["|layer|alpha|steering / hidden norm|gate entropy, nat (of at most " + f"{np.log(experts):.2f})|" + "|".join(
        f"expert {expert}, %" for expert in range(experts)
    ) + "|", "|---" * (4 + experts) + "|"]  # fmt: skip
    for layer, scale in enumerate(findings.scales):
        shares = "|".join(f"{100 * share:.1f}" for share in findings.chosen_ln[layer])
        lines.append(f"|{layer}|{scale:.3f}|{findings.ratio_l[layer]:.4f}|{findings.entropy_l[layer]:.3f}|{shares}|")
    lines += ["", "|label|its entropy, bit|layer|mutual information with the chosen expert, bit|by chance|p|", "|---" * 6 + "|"]
    for label, layers in findings.informations.items():
        for layer, found in enumerate(layers):
            lines.append(f"|{label}|{found.entropy:.3f}|{layer}|{found.bits:.4f}|{found.chance:.4f}|{found.p:.3g}|")
    return "\n".join(lines) + "\n"


def draw(findings: Findings, example: tuple[Utterance, np.ndarray], folder: Path) -> list[Path]:
    """usage.png, letters.png and example.png. example: an utterance and its features (F, M)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers, experts = findings.share_ln.shape
    paths = []

    def save(figure, name: str) -> None:
        paths.append(folder / f"{name}.png")
        temporary = folder / f".{name}.{os.getpid()}.png"
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
        os.replace(temporary, paths[-1])
        pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(1.5 + 0.6 * experts, 1.2 + 0.45 * layers))
    image = axes.imshow(findings.share_ln, vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="expert", ylabel="encoder layer", title="mean gate", xticks=range(experts), yticks=range(layers))
    figure.colorbar(image)
    save(figure, "usage")

    figure, panels = pyplot.subplots(1, layers, figsize=(1.5 + 0.35 * experts * layers, 3), sharey=True, squeeze=False)
    for layer, axes in enumerate(panels[0]):
        axes.imshow(findings.by_letter_lcn[layer], vmin=0, vmax=1, aspect="auto")
        axes.set(title=f"layer {layer}", xlabel="expert", yticks=range(len(CLASSES)), yticklabels=CLASSES)
    save(figure, "letters")

    utterance, feats_fm = example
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 2.6 + 0.3 * layers), height_ratios=(3, 0.5 + 0.3 * layers))
    above.imshow(feats_fm.T, aspect="auto", origin="lower")
    above.set(title=utterance.utt, ylabel="feature", xticks=[])
    image = below.imshow(utterance.chosen_lt, aspect="auto", interpolation="nearest", vmin=0, vmax=experts, cmap="tab20")
    below.set(xlabel="encoder frame", ylabel="layer", yticks=range(layers))
    save(figure, "example")
    return paths


def write(findings: Findings, facts: dict, example: tuple[Utterance, np.ndarray], folder: Path) -> None:
    """analysis.json, RESULTS.md, the heat maps and index.html, which shows all of it and needs no other file."""
    folder.mkdir(parents=True, exist_ok=True)
    images = draw(findings, example, folder)
    numbers = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in findings._asdict().items() if name != "informations"
    }
    numbers["informations"] = {label: [one._asdict() for one in layers] for label, layers in findings.informations.items()}
    write_json(folder / "analysis.json", facts | {"letter_classes": CLASSES} | numbers)
    made = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    text = f"# What the experts do\n\n{made}\n\n{table(findings)}"
    with atomic_write(folder / "RESULTS.md") as stream:
        stream.write(text + "\n".join(f"\n![{path.stem}]({path.name})" for path in images) + "\n")
    with atomic_write(folder / "index.html") as stream:
        stream.write(page(facts, table(findings), images))


def page(facts: dict, markdown: str, images: list[Path]) -> str:
    rows, cells = [], lambda line, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line.strip("|").split("|"))
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if not line:
            rows.append("</table><table>")
        elif not line.startswith("|---"):
            head = number + 1 < len(lines) and lines[number + 1].startswith("|---")
            rows.append(f"<tr>{cells(line, 'th' if head else 'td')}</tr>")
    shown = "".join(f"<li>{html.escape(str(key))}: {html.escape(str(value))}</li>" for key, value in facts.items())
    pictures = "".join(
        f'<h2>{path.stem}</h2><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in images
    )
    style = "body{font:15px sans-serif;margin:2em;max-width:70em}td,th{padding:.1em .6em;text-align:right}img{max-width:100%}table{margin:1em 0}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>What the experts do</title><style>{style}</style><h1>What the experts do</h1><ul>{shown}</ul>"
        f"<table>{''.join(rows)}</table>{pictures}</html>\n"
    )
