"""Do two systems differ? NIST's matched-pairs test on sentence segments (MAPSSWE, as in sc_stats) and the paired bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np

from steermoe.score.scoring import load_pairs
from steermoe.score.stats import RESAMPLES, percent
from steermoe.score.units import Units

C, S, D, I = b"CSDI"
SIGNIFICANT = 1.96  # sc_stats' threshold of |Z|, 95 %, two-tailed


@dataclass
class Comparison:
    """first, second: names. rates in percent; difference = second - first with its 95 % intervals by utterance and by speaker.

    z, p: MAPSSWE, two-sided, positive z when the first system has more errors (sc_stats prints the p of z cut to two digits).
    bootstrap_p: two-sided, by utterance.
    """

    first: str
    second: str
    first_rate: float
    second_rate: float
    interval: tuple[float, float]
    speaker_interval: tuple[float, float]
    bootstrap_p: float
    segments: int
    mean: float
    deviation: float
    z: float
    p: float

    @property
    def real(self) -> bool:
        """Whether MAPSSWE finds a difference at the 95 % level."""
        return abs(self.z) > SIGNIFICANT

    @property
    def difference(self) -> float:
        return self.second_rate - self.first_rate

    def verdict(self) -> str:
        if not self.real:
            return f"NO REAL DIFFERENCE between {self.first} and {self.second} (MAPSSWE p = {self.p:.3f}, not below 0.05)"
        better = self.first if self.z < 0 else self.second
        stars = "***" if self.p < 0.001 else "**" if self.p < 0.01 else "*"
        return f"REAL DIFFERENCE: {better} is better (MAPSSWE p = {self.p:.3g} {stars})"


def compare(
    refs: str | Path, hyps: Sequence[str | Path], unit: str = "word", normalizer: str = "none", min_good: int = 2, **options
) -> list[Comparison]:
    """Every pair of at least two hypothesis files against one reference. min_good: correct words between segments.

    options: fields of units.Units. Errors: as score().
    """
    units = Units(unit, **options)
    systems = []
    for hyp in hyps:
        pairs, _ = load_pairs(refs, hyp, units, normalizer)
        speakers = [speaker.name for speaker in pairs.speakers]
        systems.append({utt: (speakers[number], steps) for utt, number, steps in pairs.alignments()})
    return [
        compare_steps(str(hyps[a]), str(hyps[b]), systems[a], systems[b], min_good)
        for a in range(len(hyps))
        for b in range(a + 1, len(hyps))
    ]


def compare_steps(first: str, second: str, one: dict, two: dict, min_good: int = 2) -> Comparison:
    """one, two: {utt: (speaker, steps)} of the same utterances."""
    counts, speakers, differences = [], [], []
    number: dict[bytes, int] = {}
    for utt, (speaker, steps) in one.items():
        other = two[utt][1]
        counts.append((_errors(steps), _errors(other), len(steps) - steps.count(b"I"), len(other) - other.count(b"I")))
        speakers.append(number.setdefault(speaker, len(number)))
        differences += [a - b for a, b in segments(steps, other, min_good)]
    table = np.array(counts, np.int64).reshape(-1, 4)
    by_speaker = np.zeros((len(number), 4), np.int64)
    np.add.at(by_speaker, speakers, table)
    rates = [percent(*table[:, columns].sum(0).tolist()) for columns in ([0, 2], [1, 3])]
    drawn = paired_bootstrap(table)
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    speaker_low, speaker_high = np.quantile(paired_bootstrap(by_speaker), [0.025, 0.975], method="nearest")
    bootstrap_p = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())))
    mean, deviation, z = mapsswe(differences)
    return Comparison(
        first, second, *rates, (float(low), float(high)), (float(speaker_low), float(speaker_high)), bootstrap_p,
        len(differences), mean, deviation, z, math.erfc(abs(z) / math.sqrt(2)),
    )  # fmt: skip


def paired_bootstrap(table: np.ndarray, resamples: int = 10 * RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples,) differences second - first of the rates in percent, each resample drawing the same units for both.

    table: (units, 4) int: errors of the first, of the second, reference words of the first, of the second.
    """
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    if not len(distinct):
        return np.zeros(1)
    totals = np.random.default_rng(seed).multinomial(len(table), counts / len(table), size=resamples) @ distinct
    words = np.maximum(totals[:, 2:], 1)
    return 100.0 * (totals[:, 1] / words[:, 1] - totals[:, 0] / words[:, 0])


def mapsswe(differences: Sequence[int]) -> tuple[float, float, float]:
    """(mean, standard deviation, Z) of the differences in errors per segment; Z is 0 if they do not vary."""
    if not differences:
        return 0.0, 0.0, 0.0
    values = np.array(differences, float)
    mean = float(values.mean())
    squares = float(((values - mean) ** 2).sum())
    if squares == 0:
        return mean, 0.0, 0.0
    deviation = math.sqrt(squares / (len(values) - 1))
    return mean, deviation, mean / (deviation / math.sqrt(len(values)))


def segments(one: bytes, two: bytes, min_good: int = 2) -> list[tuple[int, int]]:
    """Errors of both systems in each segment of an utterance: stretches with an error in either, apart by at least min_good
    words that both have right.

    one, two: steps.
    """
    if one.count(b"C") == len(one) and two.count(b"C") == len(two):
        return []
    found: list[tuple[int, int]] = []
    at1 = at2 = good1 = good2 = good = 0  # good1, good2: the last word that both had right before the segment
    state = "clean"

    def close(end1: int, end2: int) -> None:
        begin1, begin2 = max(good1 - (min_good - 1), 0), max(good2 - (min_good - 1), 0)
        errors = _errors(one[begin1 : end1 + 1]), _errors(two[begin2 : end2 + 1])
        if any(errors):
            found.append(errors)

    while at1 < len(one) or at2 < len(two):
        while at1 < len(one) and one[at1] == I:
            at1, state = at1 + 1, "error"
        while at2 < len(two) and two[at2] == I:
            at2, state = at2 + 1, "error"
        both = at1 < len(one) and one[at1] == C and at2 < len(two) and two[at2] == C
        if not both:
            state = "error"
        elif state == "clean":
            good1, good2 = at1, at2
        else:
            good = 1 if state == "error" else good + 1
            state = "good"
            if good == min_good:
                close(at1, at2)
                good1, good2, state = at1, at2, "clean"
        at1 += at1 < len(one)
        at2 += at2 < len(two)
    if state != "clean":
        close(at1 - 1, at2 - 1)
    return found


def _errors(steps: bytes) -> int:
    return len(steps) - steps.count(b"C")
