"""Batches of utterances of about equal length under a budget of padded frames; the same for the same seed and epoch."""

from __future__ import annotations

import numpy as np


def cut_batches(ranked: list[int], lengths: list[int], batch_frames: int, max_batch: int) -> list[list[int]]:
    """Cuts a ranking into batches: longest utterance x utterances <= batch_frames, at most max_batch, at least 1 utterance.

    ranked: indices into `lengths` (input frames), neighbours of about equal length. Every index comes exactly once.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in ranked:
        longest = max(longest, lengths[index])
        if not batches or len(batches[-1]) == max_batch or longest * (len(batches[-1]) + 1) > batch_frames:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def sorted_batches(lengths: list[int], batch_frames: int, max_batch: int) -> list[list[int]]:
    """For decoding and validation: by length, ties as they come, longest batch first (so that memory fails early)."""
    return cut_batches(np.argsort(lengths, kind="stable").tolist(), lengths, batch_frames, max_batch)[::-1]


def epoch_batches(lengths: list[int], batch_frames: int, max_batch: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch of training: the neighbours of an utterance change from epoch to epoch, and so does the order of the batches."""
    rng = np.random.default_rng([seed, epoch])
    # A jitter of up to 10 % of the length lets utterances meet others while a batch stays nearly unpadded.
    jittered = np.asarray(lengths) * rng.uniform(0.9, 1.0, len(lengths))
    batches = cut_batches(np.argsort(jittered, kind="stable").tolist(), lengths, batch_frames, max_batch)
    return [batches[index] for index in rng.permutation(len(batches))]
