"""Minimum-cost alignment with sclite's weights and tie-breaking, many utterances at a time.

Weights: substitution 4, insertion 3, deletion 3. Walking back from the end, a cell whose diagonal move is among the cheapest
takes it (correct or substitution); otherwise a deletion if it is strictly cheaper than an insertion, else the insertion.

r: reference tokens, h: hypothesis tokens, b: utterances of one batch.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

SUB, INS, DEL = 4, 3, 3
CELLS = 1 << 21  # cells of one batch: 2 MB of directions, a few rows of costs


def align(refs: Sequence[Sequence], hyps: Sequence[Sequence]) -> list[bytes]:
    """The alignment of each pair as one byte a step, from the first to the last: C, S, D or I.

    refs, hyps: as many token sequences each; tokens are hashable and equal when they match.
    """
    result: list[bytes | None] = [None] * len(refs)
    vocabulary: dict = {}
    pending = []  # (ref length, hyp length, index): what is left when the equal end is cut off
    for index, (ref, hyp) in enumerate(zip(refs, hyps, strict=True)):
        r, h = len(ref), len(hyp)
        if r == h and ref == hyp:
            result[index] = b"C" * r
            continue
        # equal last tokens are always aligned: one more token at the end of either side costs at most one gap more
        while r and h and ref[r - 1] == hyp[h - 1]:
            r -= 1
            h -= 1
        if r and h:
            pending.append((r, h, index))
        else:
            result[index] = b"D" * r + b"I" * h + b"C" * (len(ref) - r)
    pending.sort()
    start = 0
    while start < len(pending):
        stop, r, h = start, 0, 0
        while stop < len(pending):
            r_next, h_next = max(r, pending[stop][0]), max(h, pending[stop][1])
            if stop > start and (stop - start + 1) * (r_next + 1) * (h_next + 1) > CELLS:
                break
            r, h, stop = r_next, h_next, stop + 1
        group = pending[start:stop]
        ref_rb = _pad([refs[index][:length] for length, _, index in group], r, vocabulary, -1)
        hyp_hb = _pad([hyps[index][:length] for _, length, index in group], h, vocabulary, -2)
        r_lens = np.array([item[0] for item in group])
        h_lens = np.array([item[1] for item in group])
        for (length, _, index), steps in zip(group, align_ids(ref_rb, hyp_hb, r_lens, h_lens)):
            result[index] = steps + b"C" * (len(refs[index]) - length)
        start = stop
    return result  # type: ignore[return-value]


def _pad(rows: list[Sequence], length: int, vocabulary: dict, fill: int) -> np.ndarray:
    """(length, b) int32 token numbers, `fill` behind the end."""
    table = np.full((len(rows), length), fill, np.int32)
    for row, tokens in zip(table, rows):
        row[: len(tokens)] = [vocabulary.setdefault(token, len(vocabulary)) for token in tokens]
    return np.ascontiguousarray(table.T)


def align_ids(ref_rb: np.ndarray, hyp_hb: np.ndarray, r_lens: np.ndarray, h_lens: np.ndarray) -> list[bytes]:
    """Alignments of b pairs. ref_rb: (R, b), hyp_hb: (H, b) int32; r_lens, h_lens: (b,) int, the true lengths."""
    directions = fill_directions(ref_rb, hyp_hb)
    b = len(r_lens)
    total = int((r_lens + h_lens).max())
    steps = np.zeros((b, total), np.uint8)
    r, h, column = r_lens.astype(np.int64), h_lens.astype(np.int64), np.arange(b)
    for position in range(total - 1, -1, -1):
        step = directions[r, h, column]
        steps[:, position] = step
        r -= (step != ord("I")) & (step != 0)
        h -= (step != ord("D")) & (step != 0)
        if not (r.any() or h.any()):
            break
    return [row[row != 0].tobytes() for row in steps]


def fill_directions(ref_rb: np.ndarray, hyp_hb: np.ndarray) -> np.ndarray:
    """(R + 1, H + 1, b) uint8: the step into each cell, C, S, D or I; 0 in the origin."""
    r_max, b = ref_rb.shape
    h_max = hyp_hb.shape[0]
    cost_type = np.int16 if SUB * (r_max + h_max + 2) < 32767 else np.int32
    slope = (INS * np.arange(h_max + 1)).astype(cost_type)[:, None]
    directions = np.empty((r_max + 1, h_max + 1, b), np.uint8)
    directions[0] = ord("I")
    directions[:, 0] = ord("D")
    directions[0, 0] = 0
    previous = np.repeat(slope, b, axis=1)
    for i in range(1, r_max + 1):
        same = ref_rb[i - 1] == hyp_hb
        diagonal = previous[:-1] + np.where(same, 0, SUB).astype(cost_type)
        deletion = previous[1:] + cost_type(DEL)
        current = np.empty_like(previous)
        current[0] = DEL * i
        np.minimum(diagonal, deletion, out=current[1:])
        # min over all insertions into column j at once: the least (cost at k) + 3 (j - k), k <= j
        current -= slope
        np.minimum.accumulate(current, axis=0, out=current)
        current += slope
        gap = np.where(deletion < current[:-1] + cost_type(INS), np.uint8(ord("D")), np.uint8(ord("I")))
        match = np.where(same, np.uint8(ord("C")), np.uint8(ord("S")))
        directions[i, 1:] = np.where(diagonal == current[1:], match, gap)
        previous = current
    return directions
