"""Checks a Kaldi data directory: the checks of Kaldi's utils/validate_data_dir.sh and validate_text.pl, in their order."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import Callable, Iterator

from steermoe.data.kaldi_files import EMPTY_VALUE_ALLOWED, PARTIAL_FILES, check_utf8, fix_hint, iter_map, line_of, spk2utt_of
from steermoe.errors import UserError

# Perl's \s without the tab, the line feed and the space
FORBIDDEN_SPACE = re.compile("[\x0b\x0c\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
ILLEGAL_SYMBOL = re.compile(r"(?<!\w)(<s>|</s>|#0)(?!\w)")
REMAKE = ("utt2dur", "utt2num_frames", "reco2dur", "vad.scp", "utt2uniq", "utt2warp")


def parse_positive(value: str, where: str, whole: bool = False) -> float:
    """A number above 0. UserError with file:line."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf) or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{where}: {value!r} should be {kind} above 0; correct the line, or make the file again")
    return number


def parse_segment(value: str, where: str) -> tuple[str, float, float]:
    """`recording start end` -> (recording, start, end) in seconds, 0 <= start < end. UserError with file:line."""
    fields = value.split()
    try:
        reco, start, end = fields[0], float(fields[1]), float(fields[2])
        if len(fields) != 3 or not 0 <= start < end < math.inf:
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(
            f"{where}: bad segment {value!r}; write `utterance recording start end` with start < end in seconds"
        ) from None
    return reco, start, end


def validate(
    path: str | Path,
    require_feats: bool = True,
    require_wav: bool = True,
    require_text: bool = True,
    require_spk_sort: bool = True,
    allow_non_print: bool = False,
) -> list[str]:
    """Checks the directory and returns warnings. UserError for the first thing that is wrong: file, line and fix.

    require_*: whether the file must be there (if there, it is checked anyway). require_spk_sort: whether utt2spk must also be
    in order of (speaker, utterance). allow_non_print: whether text may have characters that cannot be printed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; correct the path or run the data preparation (stage 0)")
    return _Check(path).run(require_feats, require_wav, require_text, require_spk_sort, allow_non_print)


class _Check:
    """One directory under check. Maps are kept only where a later check needs them."""

    def __init__(self, path: Path):
        self.path = path
        self.warnings: list[str] = []
        self.utts: dict[str, str] = {}
        self.speakers: list[str] = []
        self.recordings: list[str] | None = None

    def run(self, feats: bool, wav: bool, text: bool, spk_sort: bool, non_print: bool) -> list[str]:
        for name in ("spk2utt", "utt2spk"):
            fix = fix_hint(self.path / name) if name == "spk2utt" else "write `utterance speaker` lines"
            if not self.has(name):
                raise UserError(f"{self.path / name}: no such file; make it: {fix}")
            if (self.path / name).stat().st_size == 0:
                raise UserError(f"{self.path / name}: empty file; make it again: {fix}")
        self.check_utt2spk(spk_sort)
        self.check_spk2utt()
        self.must_exist("text", text, "--no-text")
        if self.has("text"):
            self.check_text(non_print)
        if self.has("segments") and not self.has("wav.scp"):
            raise UserError(f"{self.path / 'segments'}: exists but {self.path / 'wav.scp'} does not; write wav.scp")
        self.must_exist("wav.scp", wav, "--no-wav")
        if self.has("wav.scp"):
            self.check_wav()
        self.must_exist("feats.scp", feats, "--no-feats")
        self.check_keys("feats.scp", self.utts, "utt2spk")
        self.check_keys("cmvn.scp", self.speakers, "spk2utt")
        self.check_keys("spk2gender", self.speakers, "spk2utt", _gender)
        self.check_keys("spk2warp", self.speakers, "spk2utt", _warp)
        self.check_keys("utt2warp", self.utts, "utt2spk", _warp)
        for name in ("vad.scp", "utt2lang", "utt2uniq", *PARTIAL_FILES):
            self.check_keys(name, self.utts, "utt2spk")
        self.check_keys("utt2dur", self.utts, "utt2spk", parse_positive)
        self.check_keys("utt2num_frames", self.utts, "utt2spk", lambda value, where: parse_positive(value, where, whole=True))
        if self.recordings is not None:
            self.check_keys("reco2dur", self.recordings, "segments", parse_positive)
        else:
            self.check_keys("reco2dur", self.utts, "utt2spk", parse_positive)
        return self.warnings

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def must_exist(self, name: str, required: bool, option: str) -> None:
        if required and not self.has(name):
            raise UserError(f"{self.path / name}: no such file; make it, or, if this is by design, give {option}")

    def lines(self, name: str) -> Iterator[tuple[int, str, str]]:
        """Lines with sorted, unique keys. The last must end with a line feed, or `cat` would glue two together."""
        file = self.path / name
        yield from iter_map(file, empty_ok=name in EMPTY_VALUE_ALLOWED)
        with open(file, "rb") as stream:
            if stream.seek(0, 2):
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    count = sum(1 for _ in iter_map(file, empty_ok=True))
                    hint = f"if the line is whole, this adds it: {fix_hint(file)}"
                    raise UserError(f"{file}:{count}: the last line has no line end (truncated?); {hint}")

    def check_keys(
        self, name: str, expected: dict | list, source: str, check: Callable[[str, str], object] | None = None
    ) -> None:
        """UserError unless the file, where it exists, has exactly the expected keys, and values that pass `check`."""
        if not self.has(name):
            return
        file = self.path / name
        expected = expected if isinstance(expected, dict) else dict.fromkeys(expected)
        count = 0
        for number, key, value in self.lines(name):
            if key not in expected:
                raise UserError(f"{file}:{number}: {key!r} is not in {self.path / source}; {self.advice(name)}")
            count += 1
            if check is not None:
                check(value, f"{file}:{number}")
        if count != len(expected) and name not in PARTIAL_FILES:
            found = {key for _, key, _ in iter_map(file, empty_ok=True)}
            key = next(key for key in expected if key not in found)
            number = line_of(self.path / source, key) if source != "segments" else self.line_of_recording(key)
            missing = f"{key!r} is not in {file} ({len(expected) - count} missing there)"
            raise UserError(f"{self.path / source}:{number}: {missing}; {self.advice(name)}")

    def advice(self, name: str) -> str:
        if name in REMAKE:
            return f"remove {self.path / name} and make it again, or keep what is in both: {fix_hint(self.path / name)}"
        return f"keep what is in both: {fix_hint(self.path / name)}"

    def line_of_recording(self, reco: str) -> int:
        return next((n for n, _, value in iter_map(self.path / "segments") if value.split()[0] == reco), 0)

    def check_utt2spk(self, spk_sort: bool) -> None:
        file = self.path / "utt2spk"
        previous, strangers, first = ("", ""), 0, ""
        interned: dict[str, str] = {}
        for number, utt, spk in self.lines("utt2spk"):
            if len(spk.split()) != 1:
                raise UserError(f"{file}:{number}: {spk!r} is more than one column; write `utterance speaker`")
            if (spk, utt) < previous and spk_sort:
                raise UserError(
                    f"{file}:{number}: not sorted by speaker: {spk!r} comes after {previous[0]!r}; make each speaker-id the "
                    "prefix of its utterance-ids, or give --no-spk-sort"
                )
            previous = (spk, utt)
            self.utts[utt] = interned.setdefault(spk, spk)
            if not utt.startswith(spk):
                strangers, first = strangers + 1, first or f"{file}:{number}: {utt!r} of speaker {spk!r}"
        if strangers:
            self.warnings.append(
                f"{first}: the speaker-id is not the prefix of the utterance-id (so in {strangers} of {len(self.utts)}); "
                "tools that sort by speaker need it: name utterances speaker-utterance"
            )

    def check_spk2utt(self) -> None:
        file = self.path / "spk2utt"
        again = f"make it again: {fix_hint(file)}"
        expected = spk2utt_of(self.utts)
        self.speakers = list(expected)
        count = 0
        for number, spk, utts in self.lines("spk2utt"):
            count += 1
            if expected.get(spk) != " ".join(utts.split()):
                raise UserError(f"{file}:{number}: speaker {spk!r} does not match {self.path / 'utt2spk'}; {again}")
        if count != len(expected):
            raise UserError(f"{file}: {count} speakers, but {self.path / 'utt2spk'} has {len(expected)}; {again}")
        if count == 1:
            self.warnings.append(
                f"{file}:1: only one speaker. If you do not know who speaks, let every utterance be a speaker of its own; "
                "Kaldi's documentation on data preparation says why"
            )

    def check_text(self, non_print: bool) -> None:
        file = self.path / "text"
        if file.stat().st_size == 0:
            raise UserError(f"{file}: empty file; write `utterance words` lines")
        with open(file, "rb") as stream:  # the raw lines: what is forbidden must not have been stripped
            for number, raw in enumerate(stream, 1):
                line = check_utf8(file, number, raw).removesuffix("\n")
                if not line.isprintable() and not non_print:
                    _check_printable(line, f"{file}:{number}")
                if line.endswith("\r"):
                    raise UserError(f"{file}:{number}: ends in CR LF (Windows); convert the file: {fix_hint(file)}")
                if match := FORBIDDEN_SPACE.search(line):
                    raise UserError(
                        f"{file}:{number}: forbidden white space U+{ord(match.group()):04X} "
                        f"({unicodedata.name(match.group(), 'control character')}); replace it by a space"
                    )
                if ("<" in line or "#" in line) and (match := ILLEGAL_SYMBOL.search(line)):
                    raise UserError(f"{file}:{number}: illegal symbol {match.group()!r}; remove it from the transcript")
        self.check_keys("text", self.utts, "utt2spk")

    def check_wav(self) -> None:
        file = self.path / "wav.scp"
        for number, _, value in self.lines("wav.scp"):
            if value.startswith("~"):
                raise UserError(f"{file}:{number}: ~ is not expanded in wav.scp; write the whole path")
        if not self.has("segments"):
            self.check_keys("wav.scp", self.utts, "utt2spk")
            self.check_keys("reco2file_and_channel", self.utts, "utt2spk", self.channel)
            return
        recordings: set[str] = set()
        self.check_keys("segments", self.utts, "utt2spk", lambda value, where: recordings.add(parse_segment(value, where)[0]))
        self.recordings = sorted(recordings)
        self.check_keys("wav.scp", self.recordings, "segments")
        self.check_keys("reco2file_and_channel", self.recordings, "segments", self.channel)

    def channel(self, value: str, where: str) -> None:
        fields = value.split()
        if len(fields) != 2 or fields[1] not in ("A", "B", "1"):
            raise UserError(f"{where}: bad line; write `recording file A` or `… B`")
        if fields[1] == "1" and not any("marked as A or B" in warning for warning in self.warnings):
            self.warnings.append(f"{where}: the channel should be marked as A or B, not 1")


def _check_printable(line: str, where: str) -> None:
    """What glibc's [:print:] and [:space:] leave over: control characters, surrogates and code points that mean nothing."""
    for character in line:
        if unicodedata.category(character) in ("Cc", "Cs", "Cn") and character not in "\t\v\f\r\x85":
            raise UserError(
                f"{where}: character U+{ord(character):04X} cannot be printed; remove it, or, if this is by design, "
                "give --non-print"
            )


def _gender(value: str, where: str) -> None:
    if value not in ("m", "f"):
        raise UserError(f"{where}: {value!r} should be m or f; correct the line")


def _warp(value: str, where: str) -> None:
    if not 0.5 < parse_positive(value, where) < 1.5:
        raise UserError(f"{where}: the warp factor {value} should be between 0.5 and 1.5; correct the line")
