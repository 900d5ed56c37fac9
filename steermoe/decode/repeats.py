"""The guard against endless repeats. Pure function on token ids."""

from __future__ import annotations

from typing import Sequence

MIN_LOOP_TOKENS = 12


def loop_start(tokens: Sequence[int], max_repeats: int) -> int | None:
    """Where to cut an answer that has begun to loop, else None.

    A loop is a tail of more than `max_repeats` copies of one phrase and at least 12 tokens ("no no no no" is speech, twelve
    times "no" is not). The cut keeps the first copy: tokens[:cut]. max_repeats 0 turns the guard off.
    """
    if max_repeats <= 0:
        return None
    size = len(tokens)
    for period in range(1, size // (max_repeats + 1) + 1):
        copies = max(max_repeats + 1, -(-MIN_LOOP_TOKENS // period))
        start = size - copies * period
        if start >= 0 and all(tokens[i] == tokens[i + period] for i in range(start, size - period)):
            return start + period
    return None
