"""Long recordings to pieces that an encoder reads, cut in pauses.

A pause is at least SHORTEST_PAUSE_S whose level stays near the recording's quietest moments. Where nobody pauses, the cut is at
the quietest place and the two pieces share what is around it: steermoe.transcript joins their words again.
Shapes: N samples at 16 kHz, F frames of 10 ms.
"""

from __future__ import annotations

from itertools import chain
from typing import Iterable, Iterator, NamedTuple

import numpy as np

SAMPLE_RATE = 16000
FRAME = 160  # samples
FRAMES_PER_SECOND = SAMPLE_RATE // FRAME
SHORTEST_PAUSE_S = 0.3  # the closure of a stop consonant is shorter
MARGIN_S = 0.3  # silence that a piece keeps before and after what is said
OVERLAP_S = 2.0  # what two pieces share that no pause parts; enough for some words
LOWEST_DB = -90.0
NOISE_SWING_DB = 6.0  # noise alone swings by less, speech by more


class Piece(NamedTuple):
    """start: seconds into the recording. samples_n: float32 (N,). overlaps: its beginning is the end of the piece before it."""

    start: float
    samples_n: np.ndarray
    overlaps: bool

    @property
    def end(self) -> float:
        return self.start + len(self.samples_n) / SAMPLE_RATE


class Pause(NamedTuple):
    """Frames [first, stop)."""

    first: int
    stop: int


class Cut(NamedTuple):
    """A piece ends at frame `end`, the one after it begins at frame `then`."""

    end: int
    then: int

    @property
    def overlaps(self) -> bool:
        return self.then < self.end


def cut_at_pauses(blocks: Iterable[np.ndarray], limit: float = 30.0) -> Iterator[Piece]:
    """blocks: a recording's samples at 16 kHz, float32, in arrays of any length. limit: the longest piece in seconds.

    A recording within the limit is one piece, as it is. Of a longer one, cuts are preferred in the longest pause between a third
    and two thirds of the limit, and silence beyond MARGIN_S is left out. Holds one block and one piece in memory.
    """
    window = round(limit * SAMPLE_RATE) // FRAME * FRAME
    held, start, overlaps, floor = np.zeros(0, dtype=np.float32), 0, False, 0.0
    for block in chain(blocks, [None]):
        last = block is None
        held = held if last else np.concatenate([held, block])
        while len(held) > window or last and len(held):
            final = len(held) <= window
            level_f = levels(held[:window])
            own_floor, threshold = floor_and_threshold(level_f)
            floor = min(floor, own_floor) if final else own_floor  # what is left over may be too short to know
            pauses = find_pauses(level_f, threshold)
            if final and start == 0:
                piece, then = held, len(held)
            elif silent_f := leading_silence(level_f, pauses, floor):
                unsaid_f = silent_f if silent_f < len(level_f) else max(silent_f - frames(MARGIN_S), 1)
                piece, then = None, len(held) if final and silent_f == len(level_f) else unsaid_f * FRAME
            elif final:
                tail = pauses[-1].first + frames(MARGIN_S) if pauses and pauses[-1].stop == len(level_f) else None
                piece, then = held[: tail * FRAME if tail else None], len(held)
            else:
                cut = choose_cut(level_f, pauses, len(level_f) // 3, 2 * len(level_f) // 3)
                piece, then = held[: cut.end * FRAME], cut.then * FRAME
            if piece is not None:
                yield Piece(start / SAMPLE_RATE, piece, overlaps)
                overlaps = not final and cut.overlaps
            held, start = held[then:], start + then


def levels(samples_n: np.ndarray) -> np.ndarray:
    """(N,) float32 -> (F,) level of each frame in dB of full scale, smoothed over 50 ms, F = N // FRAME.

    Each frame's mean is taken away, so that an offset or the mains' hum is no sound.
    """
    count = len(samples_n) // FRAME
    if not count:
        return np.zeros(0, dtype=np.float32)
    power_f = samples_n[: count * FRAME].reshape(count, FRAME).var(1)
    width = min(5, count)
    window = np.ones(width, dtype=np.float32)
    smooth_f = np.convolve(power_f, window, "same") / np.convolve(np.ones_like(power_f), window, "same")
    return 10 * np.log10(smooth_f + 10 ** (LOWEST_DB / 10))


def floor_and_threshold(level_f: np.ndarray) -> tuple[float, float]:
    """The quietest moments' level, and the level below which nobody speaks: at most 10 dB above, less where noise is loud."""
    if not len(level_f):
        return LOWEST_DB, LOWEST_DB
    floor, peak = float(np.percentile(level_f, 5)), float(level_f.max())
    return floor, floor + min(10.0, 0.3 * (peak - floor))


def find_pauses(level_f: np.ndarray, threshold: float, shortest: float = SHORTEST_PAUSE_S) -> list[Pause]:
    """Stretches of at least `shortest` seconds below the threshold."""
    quiet = np.concatenate([[False], level_f < threshold, [False]])
    edges = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
    return [Pause(int(first), int(stop)) for first, stop in edges if stop - first >= frames(shortest)]


def leading_silence(level_f: np.ndarray, pauses: list[Pause], floor: float) -> int:
    """Frames in which nothing is said yet; 0 for silence no longer than the margin. floor: the noise's level in dB."""
    if not len(level_f) or level_f.max() - floor < NOISE_SWING_DB:
        return len(level_f)
    if pauses and pauses[0].first == 0 and pauses[0].stop > frames(MARGIN_S):
        return pauses[0].stop - frames(MARGIN_S)
    return 0


def choose_cut(level_f: np.ndarray, pauses: list[Pause], earliest: int, latest: int) -> Cut:
    """The longest pause between two frames; else the last one anywhere; else the quietest place from `earliest` on."""
    inner = [pause for pause in pauses if pause.first > 0]
    if fitting := [pause for pause in inner if pause.stop > earliest and pause.first < latest]:
        return middle(max(fitting, key=lambda pause: pause.stop - pause.first))
    if inner:
        return middle(inner[-1])
    half = min(frames(OVERLAP_S), len(level_f) // 3) // 2
    calm_f = np.convolve(level_f, np.ones(21), "same")[earliest : len(level_f) - half]
    quietest = earliest + int(calm_f.argmin())
    return Cut(quietest + half, quietest - half)


def middle(pause: Pause) -> Cut:
    """The cut in a pause: both sides keep the margin where there is room."""
    margin = min(frames(MARGIN_S), (pause.stop - pause.first) // 2)
    return Cut(pause.first + margin, pause.stop - margin)


def frames(seconds: float) -> int:
    return round(seconds * FRAMES_PER_SECOND)
