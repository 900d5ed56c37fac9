"""Text while the audio is still arriving.

Every chunk is put behind what has been heard since the last pause, and the whole of it is read again. Words that two readings
in a row agree on are final, the others may still change. A pause ends the segment: it is read once more, and all its words are
final.
Source: Liu et al. 2020, "Low-Latency Sequence-to-Sequence Speech Recognition and Translation by Partial Hypothesis Selection"
(local agreement).
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import numpy as np

from steermoe.data.segment import (
    FRAME, SAMPLE_RATE, Cut, choose_cut, find_pauses, floor_and_threshold, frames, leading_silence, levels, middle,
)  # fmt: skip
from steermoe.transcript import SHARED_UNITS, join_texts, match_overlap, split_units, unit_key

CLOSING_PAUSE_S = 0.5  # a pause of this length ends a segment at once, a shorter one when the segment has grown
LONGEST_SEGMENT_S = 16.0  # every chunk costs a reading of the whole segment
HISTORY_S = 30.0  # what the noise floor is estimated from
LEAST_SPEECH_S = 0.2  # less is not read
ONSET_S = 0.15  # a word may begin softly at the end of silence


class Partial(NamedTuple):
    """What a chunk of audio brought.

    new: words that are final now; all `new` joined are the text. open: the words after them, which may still change.
    heard: seconds of audio so far. latency: seconds from the chunk's arrival to these words.
    """

    new: str
    open: str
    heard: float
    latency: float = 0.0


class Stream:
    """read: samples (N,) float32 at 16 kHz -> text. limit: the longest audio that it reads, in seconds."""

    def __init__(self, read: Callable[[np.ndarray], str], limit: float = 30.0):
        self.read, self.limit = read, frames(min(limit, LONGEST_SEGMENT_S))
        self.held = np.zeros(0, dtype=np.float32)  # the segment's audio
        self.history_f = np.zeros(0, dtype=np.float32)
        self.heard = 0
        self.before: list[str] = []  # units of the segment before, if no pause parts it from this one
        self.doubtful = False  # whether the last of them is not final, because it may be cut
        self.final: list[str] = []  # final units of this segment
        self.open: list[str] = []  # what the last reading heard after them
        self.last = ""  # the last letter of the text so far

    def push(self, chunk_n: np.ndarray) -> Partial:
        """chunk_n (N,) float32 at 16 kHz, any length."""
        self.heard += len(chunk_n)
        self.held = np.concatenate([self.held, chunk_n])
        recent_f = np.concatenate([self.history_f, levels(chunk_n)])
        self.history_f = recent_f[-frames(HISTORY_S) :]
        new = ""
        while cut := self._cut(len(chunk_n) // FRAME):
            new += self._close(cut)
        units = self._fresh()
        agreed = 0
        while agreed < min(len(units), len(self.open)) and unit_key(units[agreed]) == unit_key(self.open[agreed]):
            agreed += 1
        new += self._say(units[:agreed])
        self.open = units[agreed:]
        return Partial(new, "".join(self.open).strip(), self.heard / SAMPLE_RATE)

    def finish(self) -> Partial:
        """The audio has ended: everything is final."""
        new = self._say(self._fresh())
        self.held, self.open = self.held[:0], []
        return Partial(new, "", self.heard / SAMPLE_RATE)

    def _fresh(self) -> list[str]:
        """The units of what is held that are not final yet."""
        units = self._hear(self.held)
        return units[said_already(self.final, units) :]

    def _cut(self, chunk: int) -> Cut | None:
        """Drops silence that the segment begins with; where the segment ends, if it ends in what is held.

        chunk: frames of the latest chunk; another one like it must still fit behind what is held.
        """
        floor, threshold = floor_and_threshold(self.history_f)
        level_f = levels(self.held)
        pauses = find_pauses(level_f, threshold)
        silent = leading_silence(level_f, pauses, floor)
        if silent == len(level_f):
            self.held = self.held[max(silent - frames(ONSET_S), 0) * FRAME :]
            return None
        if silent:
            self.held = self.held[silent * FRAME :]
            return self._cut(chunk)
        pauses = [pause for pause in pauses if pause.first > 0 and pause.stop <= self.limit]
        long = [pause for pause in pauses if pause.stop - pause.first >= frames(CLOSING_PAUSE_S)]
        if long or pauses and len(level_f) > self.limit // 2:
            return middle((long or pauses)[-1])
        if len(level_f) > self.limit - min(chunk, self.limit // 2):
            return choose_cut(level_f[: self.limit], [], self.limit // 3, 0)
        return None

    def _close(self, cut: Cut) -> str:
        """Reads the segment up to the cut a last time and begins the next one. -> what became final."""
        units = self._hear(self.held[: cut.end * FRAME])
        fresh = units[said_already(self.final, units) :]
        rest = [] if fresh else self.final[said_already(units, self.final) :]  # the cut may lie before the last final word
        self.doubtful = cut.overlaps and bool(fresh)
        new = self._say(fresh[:-1] if self.doubtful else fresh)
        self.before = units[-SHARED_UNITS:] if cut.overlaps else []
        self.final, self.open = rest, []
        self.held = self.held[cut.then * FRAME :]
        return new

    def _hear(self, samples_n: np.ndarray) -> list[str]:
        """The units of a reading of this segment, without those that the one before has said."""
        if len(samples_n) < LEAST_SPEECH_S * SAMPLE_RATE:
            return []
        units = split_units(self.read(samples_n))
        if not self.before:
            return units
        kept, skipped = match_overlap(self.before, units)
        whole = self.doubtful and kept == len(self.before)
        return self.before[-1:] * whole + units[skipped:]

    def _say(self, units: list[str]) -> str:
        """Makes units final; returns them with the space that joins them to the text before."""
        text = "".join(units).strip()
        if not text:
            return ""
        self.final += units
        new = join_texts(self.last, text)[len(self.last) :]
        self.last = text[-1]
        return new


def said_already(final: Sequence[str], units: Sequence[str]) -> int:
    """How many of `units` say what `final` says: those of the beginning whose letters are nearest to it in edit distance, of
    equals the one nearest in length. A new reading may spell or part final words in another way, and must not say them twice.
    """
    said, letters, ends = "".join(map(unit_key, final)), "", [0]
    for unit in units:
        letters += unit_key(unit)
        ends.append(len(letters))
    row = list(range(len(letters) + 1))
    for number, wanted in enumerate(said, 1):
        above, row[0] = row[0], number
        for place, letter in enumerate(letters, 1):
            above, row[place] = row[place], min(above + (letter != wanted), row[place] + 1, row[place - 1] + 1)
    return min(range(len(ends)), key=lambda count: (row[ends[count]], abs(ends[count] - len(said))))
