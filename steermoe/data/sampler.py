"""Batches of utterances of about equal length under a budget of padded frames; the same for the same seed and epoch.

A weight is how often an utterance is drawn in an epoch, on average: 2 twice, 0.25 in every fourth epoch or so.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np


def cut_batches(ranked: np.ndarray, lengths: list[int], batch_frames: int, max_batch: int) -> list[list[int]]:
    """Cuts a ranking into batches: longest utterance x utterances <= batch_frames, at most max_batch, at least 1 utterance.

    ranked: indices into `lengths` (input frames), neighbours of about equal length. Every index comes as often as it is ranked.
    """
    batches: list[list[int]] = []
    longest = 0
    for index, length in zip(ranked.tolist(), np.asarray(lengths)[ranked].tolist()):
        longest = max(longest, length)
        if not batches or len(batches[-1]) == max_batch or longest * (len(batches[-1]) + 1) > batch_frames:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches


def sorted_batches(lengths: list[int], batch_frames: int, max_batch: int) -> list[list[int]]:
    """For decoding and validation: by length, ties as they come, longest batch first (so that memory fails early)."""
    return cut_batches(np.argsort(lengths, kind="stable"), lengths, batch_frames, max_batch)[::-1]


def draw(weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Indices of this epoch's utterances, ascending, int64: each as often as the whole part of its weight, the rest by chance."""
    whole, rest = np.divmod(np.asarray(weights, dtype=np.float64), 1)
    extra = np.random.default_rng([seed, epoch, 1]).random(len(whole)) < rest
    return np.repeat(np.arange(len(whole)), whole.astype(np.int64) + extra)


def epoch_batches(
    lengths: list[int], batch_frames: int, max_batch: int, seed: int, epoch: int, weights: Sequence[float] | None = None
) -> list[list[int]]:
    """One epoch of training: the neighbours of an utterance change from epoch to epoch, and so does the order of the batches.

    weights: of each utterance; None: every one comes once.
    """
    rng = np.random.default_rng([seed, epoch])
    drawn = np.arange(len(lengths)) if weights is None else draw(weights, seed, epoch)
    # A jitter of up to 10 % of the length lets utterances meet others while a batch stays nearly unpadded.
    jittered = np.asarray(lengths)[drawn] * rng.uniform(0.9, 1.0, len(drawn))
    batches = cut_batches(drawn[np.argsort(jittered, kind="stable")], lengths, batch_frames, max_batch)
    return [batches[index] for index in rng.permutation(len(batches))]


def share(batch: list[int], rank: int, size: int) -> list[int]:
    """What process `rank` of `size` takes of a batch: neighbours in its order, which is about that of lengths, the shortest first.

    Each utterance goes to one process; numbers differ by at most 1, and the shorter ones make the larger shares. A batch of
    fewer utterances than processes leaves some without any.
    """
    return np.array_split(np.asarray(batch, dtype=np.int64), size)[rank].tolist()
