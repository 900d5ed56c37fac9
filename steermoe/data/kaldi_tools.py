"""Kaldi's tools for data directories: subset_data_dir.sh, split_data.sh, combine_data.sh, copy_data_dir.sh (fix: kaldi_fix.py).

Inputs are never changed, outputs are written whole, and files that do not belong to the output are set aside in its `.backup`.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import os
import random
import shutil
from pathlib import Path
from typing import Callable, Iterable, Sequence

from steermoe.data.kaldi_files import (
    ALL_FILES, PARTIAL_FILES, RECO_FILES, SPK_FILES, existing, iter_lines, iter_map, read_map, spk2utt_of, write_map,
)  # fmt: skip
from steermoe.data.kaldi_fix import fix
from steermoe.data.kaldi_validate import parse_positive, parse_segment
from steermoe.errors import UserError
from steermoe.stamp import Stamp

__all__ = ["balanced_cuts", "combine", "copy", "fix", "split", "subset"]

SUBSETS = ("even", "first", "last", "shortest", "speakers", "per_spk")
SHUFFLE_SEED = 777  # Kaldi's shuffle_list.pl


def subset(
    source: str | Path,
    out: str | Path,
    num_utts: int | None = None,
    select: str = "even",
    utt_list: str | Path | None = None,
    spk_list: str | Path | None = None,
) -> list[str]:
    """Writes some of the utterances to a new directory and returns messages.

    Which: those of `utt_list` or of the speakers of `spk_list` (files, the id in the first column), or `num_utts` chosen by
    `select`: even (spread over the list), first, last, shortest, speakers (whole speakers at random until there are enough),
    per_spk (so many of each speaker).
    """
    source, out = Path(source), Path(out)
    _refuse_same(source, out)
    utt2spk = _utt2spk(source)
    if utt_list is not None or spk_list is not None:
        wanted = {key for _, key, _ in iter_lines(utt_list or spk_list)}
        known = set(utt2spk if utt_list is not None else utt2spk.values())
        if not wanted & known:
            raise UserError(f"{utt_list or spk_list}: none of its {len(wanted)} ids is in {source / 'utt2spk'}; correct the list")
        kept = [utt for utt, spk in utt2spk.items() if (utt if utt_list is not None else spk) in wanted]
        messages = [f"{len(wanted - known)} ids of {utt_list or spk_list} are not in {source}"] if wanted - known else []
    else:
        kept, messages = _select(source, utt2spk, num_utts, select), []
    _write_parts(source, {out: kept})
    return [*messages, f"{out}: {len(kept)} of {len(utt2spk)} utterances"]


def _select(source: Path, utt2spk: dict[str, str], num_utts: int | None, select: str) -> list[str]:
    """The utterances that Kaldi's option of that name chooses."""
    if select not in SUBSETS:
        raise UserError(f"select: {select!r} is unknown (known: {', '.join(SUBSETS)})")
    if num_utts is None or num_utts < 1:
        raise UserError(f"{source}: the number of utterances must be at least 1, not {num_utts}")
    utts = list(utt2spk)
    speakers: dict[str, list[str]] = {}
    for utt, spk in utt2spk.items():
        speakers.setdefault(spk, []).append(utt)
    if select == "per_spk":
        kept = []
        for utts in speakers.values():
            step = max(1, len(utts) // num_utts)
            kept += utts[: num_utts * step : step]
        return sorted(kept)
    if select == "speakers":
        names = sorted(speakers)
        random.Random(SHUFFLE_SEED).shuffle(names)
        kept = []
        for name in names:
            if len(kept) < num_utts:
                kept += speakers[name]
        return sorted(kept)
    if num_utts > len(utts):
        raise UserError(f"{source / 'utt2spk'}: cannot take {num_utts} utterances of {len(utts)}; ask for fewer")
    if select == "first":
        return utts[:num_utts]
    if select == "last":
        return utts[-num_utts:]
    if select == "shortest":
        lengths = _lengths(source, utt2spk)
        if lengths is None:
            raise UserError(f"{source}: the shortest need utt2dur, utt2num_frames, segments or feats.scp; write utt2dur")
        return sorted(sorted(utts, key=lambda utt: (lengths[utt], utt))[:num_utts])
    return _spread(utts, num_utts)


def _spread(items: list[str], count: int) -> list[str]:
    """`count` items evenly from the list, the same ones as Kaldi's subset_scp.pl."""
    if len(items) == 1 or count == 0:
        return items[:count]
    half = len(items) // 2
    return _spread(items[:half], count // 2) + _spread(items[half:], count - count // 2)


def _lengths(source: Path, utt2spk: dict[str, str]) -> dict[str, float] | None:
    """Some length of every utterance (frames or seconds), from the first file that knows it; None if there is none."""
    readers: dict[str, Callable[[str, str], float]] = {
        "utt2num_frames": parse_positive,
        "utt2dur": parse_positive,
        "segments": lambda value, where: (lambda segment: segment[2] - segment[1])(parse_segment(value, where)),
        "feats.scp": lambda value, where: _num_frames(value),
    }
    for name, reader in readers.items():
        file = source / name
        if file.is_file():
            lengths = {utt: reader(value, f"{file}:{number}") for number, utt, value in iter_map(file)}
            if missing := next((utt for utt in utt2spk if utt not in lengths), None):
                raise UserError(f"{file}: {missing!r} is missing; make the file again, or: utils/fix_data_dir.sh {source}")
            return lengths
    return None


def _num_frames(rxfilename: str) -> int:
    from steermoe.data.ark import matrix_shape

    return matrix_shape(rxfilename)[0]


def balanced_cuts(weights: Sequence[float], parts: int) -> list[int]:
    """Cuts a list into contiguous, non-empty parts of about equal weight.

    weights: N numbers >= 0, N >= parts >= 1. Returns parts + 1 positions from 0 to N: part k is [cuts[k], cuts[k + 1]).
    Every cut goes where the running sum is nearest to its share. Where few heavy items make that bad, the cuts start from the
    smallest possible heaviest part instead. No part is then over 1.05 times that, because `_even_out` only lowers the heaviest.
    """
    sums = [0.0, *itertools.accumulate(weights)]
    last = len(weights) - parts  # the cut before part k is at most last + k, so that every later part has an item
    cuts = [0]
    for part in range(1, parts):
        cuts.append(_nearest(sums, sums[-1] * part / parts, cuts[-1] + 1, last + part))
    cuts = _even_out(sums, [*cuts, len(weights)])

    def packed(capacity: float) -> list[int]:
        full = [0]
        for part in range(1, parts):
            full.append(min(max(bisect.bisect_right(sums, sums[full[-1]] + capacity) - 1, full[-1] + 1), last + part))
        return [*full, len(weights)]

    low, high = max(weights), _heaviest(sums, cuts)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _heaviest(sums, packed(middle)) <= middle else (middle, high)
    return cuts if _heaviest(sums, cuts) <= 1.05 * high else _even_out(sums, packed(high))


def _nearest(sums: list[float], target: float, low: int, high: int) -> int:
    """The position in [low, high] whose running sum is nearest to the target."""
    cut = bisect.bisect_left(sums, target, low, high)
    return cut - 1 if cut > low and target - sums[cut - 1] < sums[cut] - target else cut


def _heaviest(sums: list[float], cuts: list[int]) -> float:
    return max(sums[b] - sums[a] for a, b in zip(cuts, cuts[1:]))


def _even_out(sums: list[float], cuts: list[int]) -> list[int]:
    """Moves each cut between its neighbours while that makes the two parts beside it more equal, as Kaldi's split_scp.pl."""
    moved = True
    while moved:  # ends: every move makes the sum of squared weights smaller
        moved = False
        for part in range(1, len(cuts) - 1):
            both = sums[cuts[part - 1]] + sums[cuts[part + 1]]
            cut = _nearest(sums, both / 2, cuts[part - 1] + 1, cuts[part + 1] - 1)
            if abs(2 * sums[cut] - both) < abs(2 * sums[cuts[part]] - both) * (1 - 1e-9):
                cuts[part], moved = cut, True
    return cuts


def split(path: str | Path, nj: int, by: str = "duration", per_spk: bool = True) -> list[Path]:
    """Splits a directory into nj parts; returns their folders, `path/split{nj}/1` … (by utterance: `split{nj}utt/1`).

    The parts are contiguous in C-locale order and balanced. by: "duration" (of utt2dur, utt2num_frames or segments, where one
    is there; else as "count"), or "count" of utterances. per_spk: no speaker is cut in two, so nj may not exceed the speakers.
    Nothing is done where the parts are there and the directory has not changed since.
    """
    path = Path(path)
    if nj < 1:
        raise UserError(f"{path}: the number of parts must be at least 1, not {nj}")
    if by not in ("duration", "count"):
        raise UserError(f"by: {by!r} is unknown (known: duration, count)")
    utt2spk = _utt2spk(path)
    root = path / f"split{nj}{'' if per_spk else 'utt'}"
    parts = [root / str(part) for part in range(1, nj + 1)]
    present = existing(path)
    stamp = Stamp(root / ".stamp", {"by": by, "per_spk": per_spk, "parts": nj}, [path / name for name in present])
    if stamp.fresh(part / name for part in parts for name in present):
        return parts
    has_lengths = existing(path, ("utt2dur", "utt2num_frames", "segments"))
    lengths = _lengths(path, utt2spk) if by == "duration" and has_lengths else None
    groups: dict[str, list[str]] = {}
    for utt, spk in utt2spk.items():
        groups.setdefault(spk if per_spk else utt, []).append(utt)
    names = sorted(groups)
    if len(names) < nj:
        what, hint = ("speakers", "use fewer parts or --per-utt") if per_spk else ("utterances", "use fewer parts")
        raise UserError(f"{path / 'utt2spk'}: cannot split {len(names)} {what} into {nj} parts; {hint}")
    weights = [sum(lengths[utt] if lengths else 1 for utt in groups[name]) for name in names]
    cuts = balanced_cuts(weights, nj)
    stamp.path.unlink(missing_ok=True)
    chosen = ([utt for name in names[a:b] for utt in groups[name]] for a, b in zip(cuts, cuts[1:]))
    _write_parts(path, dict(zip(parts, chosen)))
    stamp.write()
    return parts


def _write_parts(source: Path, parts: dict[Path, list[str]]) -> None:
    """Writes every file of the source, cut down to each part's utterances. utt2spk comes last: where it is, the part is whole."""
    utt2spk = _utt2spk(source)
    folders = list(parts)
    part_of = {utt: number for number, utts in enumerate(parts.values()) for utt in utts}
    by_utt = {utt: (number,) for utt, number in part_of.items()}
    by_speaker: dict[str, set[int]] = {}
    by_reco: dict[str, set[int]] = {}
    for utt, number in part_of.items():
        by_speaker.setdefault(utt2spk[utt], set()).add(number)
    if (source / "segments").is_file():
        for number, utt, value in iter_map(source / "segments"):
            if utt in part_of:
                by_reco.setdefault(parse_segment(value, f"{source / 'segments'}:{number}")[0], set()).add(part_of[utt])
    names = existing(source)
    for folder in folders:
        _set_aside(folder, [name for name in existing(folder) if name not in names])
    for name in names:
        if name in ("utt2spk", "spk2utt"):
            continue
        targets = by_speaker if name in SPK_FILES else by_reco if name in RECO_FILES and by_reco else by_utt
        lines: list[list[tuple[str, str]]] = [[] for _ in folders]
        for _, key, value in iter_map(source / name):
            for number in targets.get(key, ()):
                lines[number].append((key, value))
        for folder, chosen in zip(folders, lines):
            write_map(folder / name, chosen)
    for folder, utts in parts.items():
        chosen = {utt: utt2spk[utt] for utt in utts}
        write_map(folder / "spk2utt", spk2utt_of(chosen))
        write_map(folder / "utt2spk", chosen)


def combine(paths: Sequence[str | Path], out: str | Path, extra_files: Iterable[str] = (), skip_fix: bool = False) -> list[str]:
    """Joins directories into one and returns messages.

    A file is joined if every source has it (the others are named in the messages), but utt2uniq, segments, question,
    question_type and answers if any has it: utt2uniq is then the utterance itself and segments the whole recording (its length
    from utt2dur or the audio file).
    extra_files: further `key value` files. skip_fix: do not run `fix` at the end.
    UserError if one utterance or recording stands in two sources with different values.
    """
    sources, out = [Path(path) for path in paths], Path(out)
    for source in sources:
        _refuse_same(source, out)
        _utt2spk(source)
    messages, joined = [], ["spk2utt"]
    segmented = any((source / "segments").is_file() for source in sources)
    names = [name for name in dict.fromkeys((*ALL_FILES, *extra_files)) if name not in ("utt2spk", "spk2utt")]
    for name in [*names, "utt2spk"]:
        has = [(source / name).is_file() for source in sources]
        if not any(has):
            continue
        if all(has):
            streams = [iter_map(source / name) for source in sources]
        elif name in ("utt2uniq", "segments", *PARTIAL_FILES):
            streams = [iter_map(source / name) if there else _generated(source, name) for source, there in zip(sources, has)]
        else:
            missing = next(source for source, there in zip(sources, has) if not there)
            messages.append(f"not combining {name}: it does not exist in {missing}")
            continue
        recordings = name in RECO_FILES and segmented
        write_map(out / name, _merged([source / name for source in sources], streams, name in SPK_FILES, recordings, messages))
        joined.append(name)
        messages.append(f"combined {name}")
    write_map(out / "spk2utt", spk2utt_of(read_map(out / "utt2spk")))
    _set_aside(out, [name for name in existing(out) if name not in joined])
    return messages if skip_fix else messages + fix(out)


def _generated(source: Path, name: str) -> list[tuple[int, str, str]]:
    """Lines of a file that a source does not have and that its others need."""
    if name in PARTIAL_FILES:
        return []
    if name == "utt2uniq":
        return [(number, utt, utt) for number, utt, _ in iter_map(source / "utt2spk")]
    if (source / "utt2dur").is_file():
        return [(number, utt, f"{utt} 0 {seconds}") for number, utt, seconds in iter_map(source / "utt2dur")]
    from steermoe.data.audio import duration

    return [(number, utt, f"{utt} 0 {duration(wav):.6f}") for number, utt, wav in iter_map(source / "wav.scp")]


def _merged(
    files: list[Path], streams: list[Iterable[tuple[int, str, str]]], keep_first: bool, recordings: bool, messages: list[str]
) -> list[tuple[str, str]]:
    """Sorted streams -> one. A repeated line is one line; a key with two values is an error, or (keep_first) a message."""

    def tagged(which: int, stream: Iterable[tuple[int, str, str]]) -> Iterable[tuple[str, int, int, str]]:
        return ((key, which, number, value) for number, key, value in stream)

    lines: list[tuple[str, str]] = []
    last = (0, 0)
    for key, which, number, value in heapq.merge(*itertools.starmap(tagged, enumerate(streams))):
        if not lines or lines[-1][0] != key:
            lines.append((key, value))
            last = (which, number)
        elif lines[-1][1] != value:
            first = f"{files[last[0]]}:{last[1]}"
            if keep_first:
                messages.append(f"{files[which]}:{number}: {key!r} is also in {first}, with another value: kept that one")
                continue
            hint = "give one of them a prefix" + ("" if recordings else ": utils/copy_data_dir.sh --utt-prefix")
            raise UserError(f"{files[which]}:{number}: {key!r} is also in {first}, with another value; {hint}")
    return lines


def copy(
    source: str | Path, out: str | Path, utt_prefix: str = "", spk_prefix: str = "", utt_suffix: str = "", spk_suffix: str = ""
) -> list[str]:
    """Copies a directory, giving utterances and speakers a prefix or suffix, and returns messages. Recordings keep their names.

    With an utterance prefix or suffix, utt2uniq is written, which remembers the utterance's own name.
    """
    source, out = Path(source), Path(out)
    _refuse_same(source, out)
    utt2spk = _utt2spk(source)

    def utt_name(utt: str) -> str:
        return f"{utt_prefix}{utt}{utt_suffix}"

    def spk_name(spk: str) -> str:
        return f"{spk_prefix}{spk}{spk_suffix}"

    by_recording = (source / "segments").is_file()
    names = existing(source)
    written = ["utt2spk", "spk2utt"]
    for name in names:
        if name in written:
            continue
        rename = spk_name if name in SPK_FILES else (lambda reco: reco) if name in RECO_FILES and by_recording else utt_name
        write_map(out / name, ((rename(key), value) for _, key, value in iter_map(source / name)))
        written.append(name)
    if "utt2uniq" not in names and (utt_prefix or utt_suffix):
        write_map(out / "utt2uniq", {utt_name(utt): utt for utt in utt2spk})
        written.append("utt2uniq")
    for name in existing(source, ("stm", "glm", "ctm", "frame_shift")):
        shutil.copyfile(source / name, out / name)
    renamed = {utt_name(utt): spk_name(spk) for utt, spk in utt2spk.items()}
    write_map(out / "spk2utt", spk2utt_of(renamed))
    write_map(out / "utt2spk", renamed)
    return [*_set_aside(out, [name for name in existing(out) if name not in written]), f"copied data from {source} to {out}"]


def _utt2spk(path: Path) -> dict[str, str]:
    """utt2spk in its order, one string a speaker. UserError if it is missing or empty."""
    speakers: dict[str, str] = {}
    utt2spk = {utt: speakers.setdefault(spk, spk) for _, utt, spk in iter_map(path / "utt2spk")}
    if not utt2spk:
        raise UserError(f"{path / 'utt2spk'}: empty file; write `utterance speaker` lines")
    return utt2spk


def _refuse_same(source: Path, out: Path) -> None:
    if out.exists() and source.exists() and os.path.samefile(source, out):
        raise UserError(f"{out}: is the source itself; name another directory for the output")


def _set_aside(folder: Path, names: Iterable[str]) -> list[str]:
    """Moves files that an earlier run left and this one does not write into `.backup`, lest they be taken for its output."""
    messages = []
    for name in names:
        (folder / ".backup").mkdir(exist_ok=True)
        os.replace(folder / name, folder / ".backup" / name)
        messages.append(f"{folder / name}: from an earlier run; moved to {folder / '.backup' / name}")
    return messages
