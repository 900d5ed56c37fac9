"""Kaldi's fix_data_dir.sh: sorts every file and keeps only what is in all of them.

Nothing is changed before the new files and the backup are whole. The originals are in `.backup`, and stay there if the work is
interrupted and started again.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path
from typing import Callable, Iterable, Iterator

from steermoe.data.kaldi_files import ALL_FILES, RECO_FILES, SPK_FILES, check_utf8, existing, spk2utt_of
from steermoe.data.kaldi_validate import parse_segment
from steermoe.errors import UserError
from steermoe.files import atomic_write

STAGING = ".fix"
UNFINISHED = ".unfinished"  # in .backup while files are being replaced: the backup then holds the only originals


def fix(path: str | Path, utt_extra: Iterable[str] = (), spk_extra: Iterable[str] = (), spk_sort: bool = True) -> list[str]:
    """Sorts in the C locale, drops doubled lines (the first stays), blank lines, carriage returns and a byte-order mark,
    keeps the utterances that are in utt2spk, text, feats.scp, segments, utt2lang and wav.scp (those that exist), makes spk2utt.

    utt_extra, spk_extra: further files to filter, indexed by utterance or speaker. spk_sort: refuse a utt2spk that is not in
    order of (speaker, utterance), as Kaldi does. Returns messages. UserError if nothing would remain, or a file is not UTF-8.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; correct the path")
    if not (path / "utt2spk").is_file():
        raise UserError(f"{path / 'utt2spk'}: no such file; write `utterance speaker` lines")
    return _Fix(path, tuple(utt_extra), tuple(spk_extra)).run(spk_sort)


class _Fix:
    def __init__(self, path: Path, utt_extra: tuple[str, ...], spk_extra: tuple[str, ...]):
        self.path, self.backup, self.staging = path, path / ".backup", path / STAGING
        self.spk_files = (*SPK_FILES, *spk_extra)
        self.names = existing(path, dict.fromkeys((*ALL_FILES, *utt_extra, *spk_extra)))
        self.messages: list[str] = []

    def run(self, spk_sort: bool) -> list[str]:
        kept, recordings, speakers = self.decide(spk_sort)
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir()
        try:
            for name in self.names:
                if name != "spk2utt":
                    keys = speakers if name in self.spk_files else kept
                    self.stage(name, (recordings if recordings is not None and name in RECO_FILES else keys).__contains__)
            with atomic_write(self.staging / "spk2utt") as stream:
                stream.writelines(f"{spk} {utts}\n" for spk, utts in spk2utt_of(kept).items())
            self.replace()
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)
        return self.messages

    def lines(self, name: str) -> Iterator[tuple[int, str, str, bool]]:
        """(line number, key, value, whether the line is written as it should be); forgiving, for these are the files to mend."""
        with open(self.path / name, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                fields = line.split(None, 1)
                key, value = fields[0] if fields else b"", fields[1].rstrip() if len(fields) == 2 else b""
                good = raw == (key + b" " + value + b"\n" if value else key + b"\n")
                try:
                    yield number, key.decode(), value.decode(), good
                except UnicodeDecodeError:
                    check_utf8(self.path / name, number, raw)
                    raise

    def keys(self, name: str) -> set[str]:
        return {key for _, key, _, _ in self.lines(name)}

    def decide(self, spk_sort: bool) -> tuple[dict[str, str], set[str] | None, set[str]]:
        """({utterance: speaker} that stay, recordings or None without segments, speakers)."""
        utt2spk: dict[str, str] = {}
        speakers: dict[str, str] = {}  # one string a speaker
        for number, utt, spk, _ in self.lines("utt2spk"):
            if utt and len(spk.split()) != 1:
                raise UserError(f"{self.path / 'utt2spk'}:{number}: {spk!r} is not one speaker; write `utterance speaker`")
            if utt:
                utt2spk.setdefault(utt, speakers.setdefault(spk, spk))
        kept = set(utt2spk)
        for name in ("cmvn.scp", "spk2gender"):
            if name in self.names:
                known = self.keys(name)
                kept = {utt for utt in kept if utt2spk[utt] in known}
        by_utt = ["feats.scp", "text", "utt2lang"]
        recording_of: dict[str, str] = {}
        if "segments" in self.names:
            if "wav.scp" not in self.names:
                raise UserError(f"{self.path / 'segments'}: exists but {self.path / 'wav.scp'} does not; write wav.scp")
            known = self.keys("wav.scp")
            for number, utt, value, _ in self.lines("segments"):
                if not utt:
                    continue
                reco = parse_segment(value, f"{self.path / 'segments'}:{number}")[0]
                if reco in known:
                    recording_of.setdefault(utt, reco)
            kept &= set(recording_of)
        else:
            by_utt.append("wav.scp")
        for name in by_utt:
            if name in self.names:
                kept &= self.keys(name)
        if not kept:
            raise UserError(
                f"{self.path}: no utterance would remain: none is in all of {', '.join(self.names)}; "
                "their utterance-ids differ, correct them (nothing was changed)"
            )
        dropped = len(utt2spk) - len(kept)
        self.messages.append(f"kept {len(kept)} utterances out of {len(utt2spk)}" if dropped else f"kept all {len(kept)} utterances")
        chosen = {utt: utt2spk[utt] for utt in sorted(kept)}
        if spk_sort:
            self.check_speaker_order(chosen)
        recordings = {recording_of[utt] for utt in kept} if "segments" in self.names else None
        return chosen, recordings, set(chosen.values())

    def check_speaker_order(self, utt2spk: dict[str, str]) -> None:
        previous = ("", "")
        for utt, spk in utt2spk.items():
            if (spk, utt) < previous:
                raise UserError(
                    f"{self.path / 'utt2spk'}: sorted by utterance it is not by speaker: {utt!r} of {spk!r} comes after "
                    f"{previous[1]!r} of {previous[0]!r}; make each speaker-id the prefix of its utterance-ids, or give "
                    "--no-spk-sort"
                )
            previous = (spk, utt)

    def stage(self, name: str, keep: Callable[[str], bool]) -> None:
        """Writes the mended file beside the old one, if anything is wrong with that; held in memory only if it must be sorted."""
        previous, in_order, good, dropped = "", True, True, 0
        for _, key, _, written_well in self.lines(name):
            if key and key <= previous:
                in_order = False
                break
            previous = key or previous
            if key and not keep(key):
                dropped += 1
            good = good and written_well and not dropped
        if not in_order:
            self.stage_sorted(name, keep)
        elif not good:
            with atomic_write(self.staging / name) as stream:
                for _, key, value, _ in self.lines(name):
                    if key and keep(key):
                        stream.write(f"{key} {value}\n" if value else f"{key}\n")
            self.report(name, dropped)

    def stage_sorted(self, name: str, keep: Callable[[str], bool]) -> None:
        first: dict[str, tuple[int, str]] = {}
        total, doubled = 0, ""
        for number, key, value, _ in self.lines(name):
            if not key:
                continue
            total += 1
            if key not in first:
                first[key] = (number, value)
            elif first[key][1] != value and not doubled:
                doubled = f"; {key!r} had two values, line {first[key][0]} stays and line {number} is dropped"
        kept = sorted(key for key in first if keep(key))
        repeats = f", {total - len(first)} repeated lines dropped" if total > len(first) else ""
        self.messages.append(f"{self.path / name}: not in sorted order or not unique, sorting it{repeats}{doubled}")
        with atomic_write(self.staging / name) as stream:
            stream.writelines(f"{key} {first[key][1]}".rstrip() + "\n" for key in kept)
        self.report(name, len(first) - len(kept))

    def report(self, name: str, dropped: int) -> None:
        if dropped:
            self.messages.append(f"{self.path / name}: dropped {dropped} lines that are not in the other files")

    def replace(self) -> None:
        """Backs up and replaces. The order of the steps makes an interruption harmless at any point."""
        changed = [file.name for file in sorted(self.staging.iterdir()) if not _same(file, self.path / file.name)]
        marker = self.backup / UNFINISHED
        if not changed:
            marker.unlink(missing_ok=True)
            return
        self.backup.mkdir(exist_ok=True)
        if not marker.exists():  # else: an interrupted run; what is in .backup is older and must stay
            for name in self.names:
                temporary = self.backup / f".{name}.tmp"
                shutil.copy2(self.path / name, temporary)
                os.replace(temporary, self.backup / name)
            marker.touch()
        for name in changed:
            os.replace(self.staging / name, self.path / name)
        marker.unlink()
        self.messages.append(f"old files are kept in {self.backup}")


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)
