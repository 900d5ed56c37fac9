"""Minimum-cost alignment with sclite's weights and tie-breaking, many utterances at a time.

Weights: substitution 4, insertion 3, deletion 3. Walking back from the end, a cell whose diagonal move is among the cheapest
takes it (correct or substitution); otherwise a deletion if it is strictly cheaper than an insertion, else the insertion.

r: reference tokens, h: hypothesis tokens, b: utterances of one batch.
"""

from __future__ import annotations

from itertools import chain
from operator import ne
from typing import Any, Callable, Iterable, Sequence

import numpy as np

SUB, INS, DEL = 4, 3, 3
CELLS = 1 << 18  # cells of one batch: large enough for numpy, small enough for the cache


class _Numbers(dict):
    """Token -> its number, the next free one when it is new."""

    def __missing__(self, token) -> int:
        self[token] = number = len(self)
        return number


def cut_equal_ends(ref: bytes, hyp: bytes) -> tuple[int, int]:
    """(p, e): ref[:p] are the equal words at the beginning of both, the last e bytes the equal words behind the difference.

    ref, hyp: words with a space behind each, not equal as a whole. The end is cut off first, as in align().
    """
    end = _common(ref, hyp, "little")
    if end:
        at_ref, at_hyp = len(ref) - end, len(hyp) - end
        if not (at_ref == 0 or ref[at_ref - 1] == 32) or not (at_hyp == 0 or hyp[at_hyp - 1] == 32):
            end = len(ref) - 1 - ref.find(b" ", at_ref)
    start = _common(ref[: len(ref) - end], hyp[: len(hyp) - end], "big")
    return ref.rfind(b" ", 0, start) + 1, end


def _common(a: bytes, b: bytes, order: str) -> int:
    """How many bytes are equal at the beginning ("big") or at the end ("little"): numbers show their first different byte."""
    n = min(len(a), len(b))
    if not n:
        return 0
    a, b = (a[:n], b[:n]) if order == "big" else (a[-n:], b[-n:])
    different = int.from_bytes(a, order) ^ int.from_bytes(b, order)  # type: ignore[arg-type]
    return n - (different.bit_length() + 7) // 8


def align(refs: Sequence[Sequence], hyps: Sequence[Sequence]) -> list[bytes]:
    """The alignment of each pair as one byte a step, from the first to the last: C, S, D or I.

    refs, hyps: as many token sequences each; tokens are hashable and equal when they match.
    """
    result: list[bytes] = []
    cut: list[tuple[Sequence, Sequence, int]] = []
    for ref, hyp in zip(refs, hyps, strict=True):
        end = start = 0
        for a, b in zip(reversed(ref), reversed(hyp)):
            if a != b:
                break
            end += 1
        r, h = len(ref) - end, len(hyp) - end
        least = min(r, h)
        for a, b in zip(ref, hyp):
            if start == least or a != b:
                break
            start += 1
        cut.append((ref[start:r], hyp[start:h], start))
    for (ref_part, hyp_part, start), steps, ref, hyp in zip(cut, align_cut([x[0] for x in cut], [x[1] for x in cut]), refs, hyps):
        rest, gaps = without_first_gaps(steps)
        r_gaps, h_gaps = (gaps, 0) if steps[:1] == b"D" else (0, gaps)
        before = gaps_before(ref, hyp, start + r_gaps, start + h_gaps)
        result.append(before + rest + b"C" * (len(ref) - start - len(ref_part)))
    return result


def align_cut(refs: Sequence[Sequence], hyps: Sequence[Sequence]) -> list[bytes]:
    """align() of what is left when the equal end and then the equal beginning are cut off.

    Equal last tokens are always aligned: the diagonal is never dearer than a gap there, and wins ties. Behind an equal beginning
    costs are what they are without it, so up to there the walk back is the same; only gaps at the very beginning may then move
    into the equal part (gaps_before).
    """
    result: list[bytes] = []
    pending = []  # (ref length, hyp length, index)
    for index, (ref, hyp) in enumerate(zip(refs, hyps)):
        r, h = len(ref), len(hyp)
        if r == h > 1 and sum(map(ne, ref, hyp)) == 2 and ref[1:] != hyp[:-1] and ref[:-1] != hyp[1:]:
            # both ends differ and nothing else: any other alignment has a gap on either side (6) and a substitution (4), or more
            result.append(b"S" + b"C" * (r - 2) + b"S")
        elif r and h and (r > 1 or h > 1):
            pending.append((r, h, index))
            result.append(b"")
        else:
            result.append(b"S" if r and h else b"D" * r + b"I" * h)
    pending.sort(key=lambda item: max(item[:2]))
    number = _Numbers().__getitem__
    first = 0
    while first < len(pending):
        stop, longest = first, 0
        while stop < len(pending):
            longest = max(*pending[stop][:2])
            if stop > first and (stop - first + 1) * (longest + 1) ** 2 > CELLS:
                break
            stop += 1
        group = pending[first:stop]
        r_lens, h_lens = (np.array([item[side] for item in group]) for side in (0, 1))
        ref_rb = _table([refs[index] for _, _, index in group], r_lens, number, -1)
        hyp_hb = _table([hyps[index] for _, _, index in group], h_lens, number, -2)
        for (_, _, index), steps in zip(group, align_ids(ref_rb, hyp_hb, r_lens, h_lens)):
            result[index] = steps
        first = stop
    return result


def without_first_gaps(steps: bytes) -> tuple[bytes, int]:
    """(steps without the gaps of one kind that they begin with, how many those are)."""
    rest = steps.lstrip(steps[:1]) if steps[:1] in (b"D", b"I") else steps
    return rest, len(steps) - len(rest)


def gaps_before(ref: Sequence, hyp: Sequence, r: int, h: int) -> bytes:
    """The alignment of ref[:r] and hyp[:h] of which one begins with the other whole: gaps only, each as late as the walk back
    from the end allows, that is where the tokens there differ."""
    if r == h:
        return b"C" * r
    gap, steps = b"D" if r > h else b"I", []
    while r != h:
        if r and h and ref[r - 1] == hyp[h - 1]:
            steps.append(b"C")
            r, h = r - 1, h - 1
        else:
            steps.append(gap)
            r, h = (r - 1, h) if r > h else (r, h - 1)
    return b"C" * r + b"".join(reversed(steps))


def _table(rows: Iterable[Sequence], lengths: np.ndarray, number: Callable[[Any], int], fill: int) -> np.ndarray:
    """(longest, b) int32 token numbers, `fill` behind the end."""
    table = np.full((len(lengths), int(lengths.max())), fill, np.int32)
    numbers = np.fromiter(map(number, chain.from_iterable(rows)), np.int32, int(lengths.sum()))
    table[np.arange(table.shape[1]) < lengths[:, None]] = numbers
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
    filled = steps.tobytes()  # zeros stand before the first step only
    return [filled[row * total : (row + 1) * total].lstrip(b"\0") for row in range(b)]


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
