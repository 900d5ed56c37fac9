"""Confidence intervals of an error rate, and whether two systems differ."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000


def bootstrap_interval(errors, words, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of sum(errors) / sum(words) in percent when the units (utterances or speakers) are drawn anew.

    errors, words: (n,) int, per unit. Drawing n units with replacement is one multinomial draw over the distinct
    (errors, words) pairs, so a million utterances cost no more than their few hundred distinct pairs.
    """
    pairs = (np.asarray(errors, np.int64) << 32) + np.asarray(words, np.int64)
    if not len(pairs):
        return 0.0, 0.0
    distinct, counts = np.unique(pairs, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(pairs), counts / len(pairs), size=resamples)
    totals = drawn @ np.stack([distinct >> 32, distinct & 0xFFFFFFFF], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.nan_to_num(100.0 * totals[:, 0] / totals[:, 1], nan=0.0, posinf=np.inf)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def percent(errors: float, words: float) -> float:
    """100 errors / words; errors without any reference word are an infinite rate."""
    if words:
        return 100.0 * errors / words
    return float("inf") if errors else 0.0
