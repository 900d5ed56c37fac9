"""What systems wrote under each condition: figures, a Markdown table, and a plot of the error rate over the noise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

from steermoe.decode.repeats import loop_start
from steermoe.files import read_json
from steermoe.score.scoring import score
from steermoe.score.trn import read_trn
from steermoe.text.normalizers import get_normalizer, split_units

LOOP_COPIES = 4


def figures(folder: Path, speech: bool, unit: str, normalizer: str) -> dict:
    """Of the hypotheses that a decoding verb left in `folder`. Speech: the scorer's summary, and its report in the folder.

    No speech: clips, seconds, per_clip (words or characters that were written for a clip), most, empty (share of clips for which
    nothing was written). Both: loops (answers that the repeat guard stopped or that end in more than LOOP_COPIES copies of 12 or
    more characters), cut (answers at the length limit).
    """
    decoded, texts = read_json(folder / "decode.json"), list(read_trn(folder / "hyp.trn").values())
    ended = decoded["ended"]
    loops = sum(loop_start(list(text), LOOP_COPIES) is not None for text in texts)
    found = {"loops": ended["repeat"] + loops, "cut": ended["length"]}
    if speech:
        return vars(score(folder / "ref.trn", folder / "hyp.trn", unit, normalizer, folder, markup=False)) | found
    normalize = get_normalizer(normalizer)
    # the English normaliser leaves the point of an answer that is nothing else
    sizes = [sum(any(map(str.isalnum, word)) for word in split_units(normalize(text), unit)) for text in texts]
    shares = {"per_clip": sum(sizes) / len(sizes), "most": max(sizes), "empty": sizes.count(0) / len(sizes)}
    return {"clips": len(sizes), "seconds": decoded["audio_seconds"]} | shares | found


def tables(systems: Sequence[str], conditions: Sequence[dict], unit: str) -> str:
    """conditions: name, speech, and results: {system: figures}, those of systems that have not been there yet missing."""
    what = {"word": "words", "char": "characters"}[unit]
    parts = []
    for speech, first, heads, cells in (
        (True, ["condition", "Snt", what], ["Err", "95 % interval", "loops"], rate_cells),
        (False, ["nobody speaks", "clips", "s"], [f"{what} per clip", "most", "empty", "loops"], clip_cells),
    ):
        rows = [[*first, *(f"{system}: {head}" for system in systems for head in heads)]]
        rows.append(["---"] * len(rows[0]))
        for condition in conditions:
            if condition["speech"] == speech and (results := condition["results"]):
                size, _ = cells(next(iter(results.values())))
                row = [condition["name"], *size]
                for system in systems:
                    row += cells(results[system])[1] if system in results else [""] * len(heads)
                rows.append(row)
        if len(rows) > 2:
            parts.append("".join(f"|{'|'.join(row)}|\n" for row in rows))
    return "\n".join(parts)


def rate_cells(found: dict) -> tuple[list[str], list[str]]:
    size = [str(found["sentences"]), str(found["n"])]
    return size, [f"{found['rate']:.1f}", f"{found['low']:.1f} to {found['high']:.1f}", str(found["loops"])]


def clip_cells(found: dict) -> tuple[list[str], list[str]]:
    size = [str(found["clips"]), f"{found['seconds']:.0f}"]
    return size, [f"{found['per_clip']:.2f}", str(found["most"]), f"{100 * found['empty']:.0f} %", str(found["loops"])]


def plot_snr(systems: Sequence[str], conditions: Sequence[dict], unit: str, path: Path) -> None:
    """PNG: error rate with its 95 % interval over the signal-to-noise ratio, clean at the left; a line a system and noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = sorted({condition["snr"] for condition in conditions if condition["snr"] is not None}, reverse=True)
    places = {None: 0} | {snr: place for place, snr in enumerate(ratios, 1)}
    noises = list(dict.fromkeys(condition["noise"] for condition in conditions if condition["noise"]))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for colour, system in enumerate(systems):
        for style, noise in zip(("-", "--", ":", "-."), noises):
            of_noise = [c for c in conditions if c["name"] == "clean" or c["noise"] == noise]
            found = sorted((places[c["snr"]], c["results"][system]) for c in of_noise if system in c["results"])
            rates = [figure["rate"] for _, figure in found]
            below = [max(figure["rate"] - figure["low"], 0.0) for _, figure in found]
            above = [max(figure["high"] - figure["rate"], 0.0) for _, figure in found]
            settings = {"color": f"C{colour}", "linestyle": style, "marker": ".", "capsize": 2}
            axes.errorbar([place for place, _ in found], rates, [below, above], label=f"{system}, {noise}", **settings)
    axes.set_xticks(list(places.values()), ["clean", *(f"{snr:g} dB" for snr in ratios)])
    axes.set(xlabel="signal-to-noise ratio", ylabel=f"{'CER' if unit == 'char' else 'WER'} %, 95 % interval")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if noises and systems:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=120, bbox_inches="tight")
    os.replace(temporary, path)
    pyplot.close(figure)
