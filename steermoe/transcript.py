"""What was said in a recording and when; the words of two pieces that share some audio, joined; subtitles.

A unit is a word with the space before it, or one character of a script that puts no spaces between words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple, Sequence

FORMATS = ("text", "json", "srt", "vtt")
_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_UNIT = re.compile(rf"\s*(?:[{_CJK}]|[^\s{_CJK}]+)")
_NO_SPACE = re.compile(rf"[{_CJK}]")
SHARED_UNITS = 16  # the most that a piece's overlap with the one before it can hold


class Segment(NamedTuple):
    """Seconds from the recording's beginning, and what was said between them."""

    start: float
    end: float
    text: str


@dataclass
class Transcript:
    """One recording's segments in order; no word is in two of them."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def text(self) -> str:
        joined = ""
        for segment in self.segments:
            joined = join_texts(joined, segment.text)
        return joined

    def add(self, start: float, end: float, text: str, overlaps: bool) -> None:
        """Appends a piece. overlaps: its beginning is the end of the segment before it, whose words it may repeat."""
        if overlaps and self.segments:
            last = self.segments[-1]
            before, after = split_units(last.text), split_units(text)
            kept, skipped = match_overlap(before, after)
            text = "".join(after[skipped:]).strip()
            start = min((start + last.end) / 2, end)
            self.segments[-1] = Segment(last.start, start, "".join(before[:kept]))
        if text:
            self.segments.append(Segment(start, end, text))


def split_units(text: str) -> list[str]:
    """"two words 你好" -> ["two", " words", " 你", "好"]."""
    return _UNIT.findall(text.strip())


def join_texts(before: str, after: str) -> str:
    """With a space between, unless one side is empty or both are characters that stand without."""
    bare = not before or not after or _NO_SPACE.match(before[-1]) and _NO_SPACE.match(after[0])
    return before + after if bare else f"{before} {after}"


def unit_key(unit: str) -> str:
    """What makes two units the same: neither case nor punctuation."""
    return "".join(letter for letter in unit.lower() if letter.isalnum()) or unit.strip()


def match_overlap(before: Sequence[str], after: Sequence[str]) -> tuple[int, int]:
    """Units of two pieces, the second of which begins with what the first ends with -> how many of `before` to keep, how many of
    `after` to leave out.

    They are joined at the end of a common run, a long one that leaves little out: what a cut has maimed is after it in `before`
    and ahead of it in `after`.

        the cat sat on the ma
                 at on the mat and slept   ->  5, 3    the cat sat on the | mat and slept
    """
    tail, head = [unit_key(u) for u in before[-SHARED_UNITS:]], [unit_key(u) for u in after[:SHARED_UNITS]]
    best = (0, len(before), 0)
    for first in range(len(tail)):
        for skipped in range(len(head)):
            size = 0
            while first + size < len(tail) and skipped + size < len(head) and tail[first + size] == head[skipped + size]:
                size += 1
            lost = len(tail) - first - size + skipped
            if size:
                best = max(best, (3 * size - lost, len(before) - len(tail) + first + size, skipped + size))
    return best[1:]


def format_transcript(transcript: Transcript, name: str, form: str) -> str:
    """form: text: `NAME<TAB>text`; json: one line with the segments and their times; srt, vtt: subtitles."""
    if form == "text":
        return f"{name}\t{transcript.text}"
    if form == "json":
        segments = [{"start": round(s.start, 2), "end": round(s.end, 2), "text": s.text} for s in transcript.segments]
        return json.dumps({"file": name, "text": transcript.text, "segments": segments}, ensure_ascii=False)
    comma = "," if form == "srt" else "."
    cues = []
    for number, segment in enumerate(transcript.segments, 1):
        number_line = f"{number}\n" if form == "srt" else ""
        cues.append(f"{number_line}{_clock(segment.start, comma)} --> {_clock(segment.end, comma)}\n{segment.text}\n")
    return "\n".join(cues if form == "srt" else ["WEBVTT\n", *cues])


def _clock(seconds: float, comma: str) -> str:
    total_ms = round(seconds * 1000)
    return f"{total_ms // 3600000:02d}:{total_ms // 60000 % 60:02d}:{total_ms // 1000 % 60:02d}{comma}{total_ms % 1000:03d}"
