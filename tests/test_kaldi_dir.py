"""Kaldi data directories: what is read, what is refused and with which message, and Kaldi's tools."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steermoe.data import kaldi_fix, kaldi_tools
from steermoe.data.kaldi_dir import DataDir, combine, copy, fix, read_map, split, subset, validate, write_map
from steermoe.errors import UserError

FILES = {
    "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
    "spk2utt": "a a-1 a-2\nb b-1\n",
    "text": "a-1 hello world\na-2\nb-1 你好 Welt\n",
    "wav.scp": "a-1 x/a-1.wav\na-2 x/a-2.wav\nb-1 x/b-1.wav\n",
}
SEGMENTED = {
    **FILES,
    "segments": "a-1 rec1 0.0 1.5\na-2 rec1 1.5 2\nb-1 rec2 0.25 3\n",
    "wav.scp": "rec1 x/1.flac\nrec2 x/2.flac\n",
}


def make(folder: Path, files: dict[str, str] | None = None, **changes: str | bytes | None) -> Path:
    """Writes a directory; `wav_scp=…` replaces wav.scp's content, None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**(files or FILES), **{name.replace("_scp", ".scp"): text for name, text in changes.items()}}
    for name, text in content.items():
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def no_feats(folder: Path) -> list[str]:
    return validate(folder, require_feats=False)


# ---- reading


def test_read_joins_every_file(tmp_path):
    data = make(tmp_path / "d")
    write_map(data / "utt2dur", {"a-1": 1.5, "a-2": 2.0, "b-1": 12.0000634})
    write_map(data / "utt2lang", {"a-1": "en", "a-2": "en", "b-1": "zh"})
    write_map(data / "utt2num_frames", {"a-1": 150, "a-2": 200, "b-1": 1200})
    write_map(data / "question", {"b-1": "what is said?"})
    write_map(data / "feats.scp", {"a-1": "f.ark:4", "a-2": "f.ark:99[0:49]", "b-1": "f.ark:7[0:9,0:3]"})
    utterances = DataDir.read(data).utterances
    assert list(utterances) == ["a-1", "a-2", "b-1"]
    first, second, third = utterances.values()
    assert (first.spk, first.text, first.wav, first.start, first.end) == ("a", "hello world", "x/a-1.wav", None, None)
    assert (first.duration, first.lang, first.num_frames, first.question) == (1.5, "en", 150, None)
    assert second.text == "" and second.feats == "f.ark:99[0:49]"
    assert (third.text, third.duration, third.question, third.feats) == (
        "你好 Welt", 12.000063, "what is said?", "f.ark:7[0:9,0:3]"
    )  # fmt: skip


def test_read_segments(tmp_path):
    utterances = DataDir.read(make(tmp_path / "d", SEGMENTED)).utterances
    assert [(u.wav, u.start, u.end, u.duration) for u in utterances.values()] == [
        ("x/1.flac", 0.0, 1.5, 1.5),
        ("x/1.flac", 1.5, 2.0, 0.5),
        ("x/2.flac", 0.25, 3.0, 2.75),
    ]


def test_read_accepts_tabs_and_missing_optional_files(tmp_path):
    data = make(tmp_path / "d", text=None, wav_scp="a-1\tx y.wav\na-2\tz.wav\nb-1\tw.wav\n", spk2utt=None)
    utterances = DataDir.read(data, require=("wav.scp",)).utterances
    assert utterances["a-1"].wav == "x y.wav" and utterances["a-1"].text is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"wav_scp": None}, r"wav\.scp: no such file"),
        ({"text": None}, r"text: no such file"),
        ({"utt2spk": None}, r"utt2spk: no such file"),
        ({"utt2spk": ""}, r"utt2spk: empty file"),
        ({"wav_scp": "a-2 y\na-1 x\nb-1 z\n"}, r"wav\.scp:2: not sorted: 'a-1' comes after 'a-2'.*fix_data_dir"),
        ({"text": "a-2 y\na-1 x\nb-1 z\n"}, r"text:2: not sorted"),
        ({"text": "a-1 x\na-1 y\na-2 y\nb-1 z\n"}, r"text:2: duplicated key 'a-1' \(first on line 1\)"),
        ({"utt2spk": "a-1 a\na-2 a\nb-1 b\na-1 a\n"}, r"utt2spk:4: duplicated key 'a-1' \(first on line 1\)"),
        ({"text": "a-1 x\na-2 y\n"}, r"utt2spk:3: 'b-1' is not in .*text \(1 missing"),
        ({"wav_scp": "a-1 x\na-2 y\nb-1 z\nb-2 z\n"}, r"wav\.scp:4: 'b-2' is not in .*utt2spk"),
        ({"text": b"a-1 caf\xe9\na-2 y\nb-1 z\n"}, r"text:1: not UTF-8 \(byte 0xe9 at column 8\).*iconv"),
        ({"text": b"\xef\xbb\xbfa-1 x\na-2 y\nb-1 z\n"}, r"text:1: begins with a byte-order mark"),
        ({"text": "a-1 x\n\na-2 y\nb-1 z\n"}, r"text:2: blank line"),
        ({"wav_scp": "a-1 x\na-2\nb-1 z\n"}, r"wav\.scp:2: 'a-2' has no value"),
        ({"wav_scp": "a-1 ~/x\na-2 y\nb-1 z\n"}, r"wav\.scp:1: ~ is not expanded"),
        ({"wav_scp": "a-1 x\na-2 sox y - |\nb-1 z\n"}, r"wav\.scp:2: a command.*--allow-pipes true"),
        ({"utt2spk": "a-1 a x\na-2 a\nb-1 b\n"}, r"utt2spk:1: more than two columns"),
        ({"utt2dur": "a-1 1\na-2 long\nb-1 2\n"}, r"utt2dur:2: 'long' should be a number above 0"),
        ({"utt2dur": "a-1 1\na-2 0\nb-1 2\n"}, r"utt2dur:2: '0' should be"),
        ({"utt2num_frames": "a-1 1\na-2 1.5\nb-1 2\n"}, r"utt2num_frames:2: '1.5' should be a whole number"),
    ],
)
def test_read_refuses(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        DataDir.read(make(tmp_path / "d", **change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"segments": "a-1 rec1 0 1\na-2 rec1 2 1\nb-1 rec2 0 1\n"}, r"segments:2: bad segment"),
        ({"segments": "a-1 rec1 0 1\na-2 rec1 one 1\nb-1 rec2 0 1\n"}, r"segments:2: bad segment"),
        ({"segments": "a-1 rec1 0 1\na-2 rec1 1\nb-1 rec2 0 1\n"}, r"segments:2: bad segment"),
        ({"segments": "a-1 rec1 0 1\na-2 rec9 0 1\nb-1 rec2 0 1\n"}, r"segments:2: the recording 'rec9' is not in"),
        ({"wav_scp": "rec1 x\nrec2 y\nrec3 z\n"}, r"wav\.scp:3: the recording 'rec3' is not in"),
        ({"wav_scp": None}, r"wav\.scp: no such file"),
    ],
)
def test_read_refuses_segments(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        DataDir.read(make(tmp_path / "d", SEGMENTED, **change))


def test_pipes_are_read_where_allowed_and_never_run_by_reading(tmp_path):
    marker = tmp_path / "ran"
    data = make(tmp_path / "d", wav_scp=f"a-1 touch {marker} |\na-2 y\nb-1 z\n")
    assert DataDir.read(data, allow_pipes=True).utterances["a-1"].wav == f"touch {marker} |"
    no_feats(data)
    assert not marker.exists()


def test_write_map_sorts_by_bytes_and_refuses_broken_keys(tmp_path):
    keys = ["é", "z", "a b".replace(" ", "-"), "a", "Z", "你", "\U0001f600", "\uffee"]
    write_map(tmp_path / "m", {key: 1 for key in keys})
    lines = (tmp_path / "m").read_bytes().splitlines()
    assert lines == sorted(lines) and set(read_map(tmp_path / "m")) == set(keys)
    for key, value in (("a b", "x"), ("", "x"), ("a", "x\ny")):
        with pytest.raises(UserError):
            write_map(tmp_path / "m", {key: value})
    assert set(read_map(tmp_path / "m")) == set(keys)


# ---- validate


def test_validate_accepts_and_warns(tmp_path):
    assert no_feats(make(tmp_path / "d")) == []
    assert no_feats(make(tmp_path / "s", SEGMENTED)) == []
    one = {"utt2spk": "a-1 a\na-2 a\n", "spk2utt": "a a-1 a-2\n", "text": "a-1 x\na-2 y\n", "wav.scp": "a-1 x\na-2 y\n"}
    assert "only one speaker" in no_feats(make(tmp_path / "one", one))[0]
    stranger = {**FILES, "utt2spk": "a-1 x\na-2 x\nb-1 y\n", "spk2utt": "x a-1 a-2\ny b-1\n"}
    warnings = no_feats(make(tmp_path / "w", stranger))
    assert len(warnings) == 1 and "not the prefix" in warnings[0] and "3 of 3" in warnings[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"spk2utt": None}, r"spk2utt: no such file; make it: utils/fix_data_dir\.sh"),
        ({"spk2utt": ""}, r"spk2utt: empty file"),
        ({"utt2spk": None}, r"utt2spk: no such file"),
        ({"spk2utt": "a a-1\nb b-1\n"}, r"spk2utt:1: speaker 'a' does not match"),
        ({"spk2utt": "a a-1 a-2\n"}, r"spk2utt: 1 speakers, but"),
        ({"utt2spk": "a-1 b\na-2 a\nb-1 b\n"}, r"utt2spk:2: not sorted by speaker.*--no-spk-sort"),
        ({"text": None}, r"text: no such file; .*--no-text"),
        ({"wav_scp": None}, r"wav\.scp: no such file; .*--no-wav"),
        ({"text": ""}, r"text: empty file"),
        ({"text": "a-1 x\na-2 y\nb-1 z"}, r"text:3: the last line has no line end"),
        ({"text": "a-1 x\na-2 y\r\nb-1 z\n"}, r"text:2: ends in CR LF"),
        ({"text": "a-1 x\na-2 y\u3000z\nb-1 z\n"}, r"text:2: forbidden white space U\+3000 \(IDEOGRAPHIC SPACE\)"),
        ({"text": "a-1 x\na-2 y\xa0z\nb-1 z\n"}, r"text:2: forbidden white space U\+00A0"),
        ({"text": "a-1 x\na-2 y\x07z\nb-1 z\n"}, r"text:2: character U\+0007 cannot be printed.*--non-print"),
        ({"text": "a-1 x\na-2 <s> y\nb-1 z\n"}, r"text:2: illegal symbol '<s>'"),
        ({"text": "a-1 x\na-2 #0\nb-1 z\n"}, r"text:2: illegal symbol '#0'"),
        ({"text": b"a-1 x\na-2 \xff\nb-1 z\n"}, r"text:2: not UTF-8"),
        ({"text": "a-1 x\nb-1 z\n"}, r"utt2spk:2: 'a-2' is not in .*text"),
        ({"text": "a-1 x\na-2 x\na-3 x\nb-1 z\n"}, r"text:3: 'a-3' is not in .*utt2spk"),
        ({"wav_scp": "a-1 ~/x\na-2 x\nb-1 z\n"}, r"wav\.scp:1: ~ is not expanded"),
        ({"wav_scp": "a-1 x\na-1 x\na-2 x\nb-1 z\n"}, r"wav\.scp:2: duplicated key"),
        ({"feats_scp": "a-1 f:1\n"}, r"utt2spk:2: 'a-2' is not in .*feats\.scp \(2 missing"),
        ({"cmvn_scp": "a f:1\n"}, r"spk2utt:2: 'b' is not in .*cmvn\.scp"),
        ({"spk2gender": "a m\nb x\n"}, r"spk2gender:2: 'x' should be m or f"),
        ({"spk2warp": "a 1\nb 2\n"}, r"spk2warp:2: the warp factor"),
        ({"utt2lang": "a-1 en\n"}, r"utt2lang"),
        ({"utt2dur": "a-1 1\na-2 -1\nb-1 2\n"}, r"utt2dur:2: '-1'"),
        ({"utt2dur": "a-1 1\na-2 1\n"}, r"'b-1' is not in .*utt2dur.*make it again"),
        ({"reco2file_and_channel": "a-1 x C\na-2 x A\nb-1 x A\n"}, r"reco2file_and_channel:1: bad line"),
    ],
)
def test_validate_refuses(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        no_feats(make(tmp_path / "d", **change))


def test_validate_options(tmp_path):
    with pytest.raises(UserError, match="--no-feats"):
        validate(make(tmp_path / "d"))
    validate(make(tmp_path / "e", text=None, wav_scp=None), False, False, False)
    unsorted = {**FILES, "utt2spk": "a-1 b\na-2 a\nb-1 b\n", "spk2utt": "a a-2\nb a-1 b-1\n"}
    validate(make(tmp_path / "f", unsorted), False, require_spk_sort=False)
    validate(make(tmp_path / "g", text="a-1 x\na-2 y\x07z\nb-1 z\n"), False, allow_non_print=True)


def test_validate_segments(tmp_path):
    for change, message in (
        ({"wav_scp": "rec1 x\n"}, r"segments:3: 'rec2' is not in .*wav\.scp"),
        ({"wav_scp": "rec1 x\nrec2 y\nrec3 y\n"}, r"wav\.scp:3: 'rec3' is not in .*segments"),
        ({"segments": "a-1 rec1 0 1\na-2 rec1 1 1\nb-1 rec2 0 1\n"}, r"segments:2: bad segment"),
        ({"segments": "a-1 rec1 0 1\nb-1 rec2 0 1\n"}, r"utt2spk:2: 'a-2' is not in .*segments"),
        ({"reco2dur": "rec1 1\n"}, r"'rec2' is not in .*reco2dur"),
    ):
        with pytest.raises(UserError, match=message):
            no_feats(make(tmp_path / message[:5], SEGMENTED, **change))


# ---- fix


def test_fix_sorts_filters_and_keeps_the_originals(tmp_path):
    broken = {
        "utt2spk": "b-1 b\na-1 a\na-2 a\nc-1 c\na-2 a\n",
        "text": b"\xef\xbb\xbfb-1 z\r\na-1  x  y \n\na-2\tw\nd-1 q\na-1 other",
        "wav.scp": "a-1 x\na-2 y\nb-1 z\nc-1 w\n",
    }
    data = make(tmp_path / "d", broken)
    before = contents(data)
    messages = "\n".join(fix(data))
    assert "kept 3 utterances out of 4" in messages and "'a-1' had two values, line 2 stays and line 6 is dropped" in messages
    assert (data / "text").read_text() == "a-1 x  y\na-2 w\nb-1 z\n"
    assert (data / "utt2spk").read_text() == "a-1 a\na-2 a\nb-1 b\n"
    assert (data / "spk2utt").read_text() == "a a-1 a-2\nb b-1\n"
    assert contents(data / ".backup") == before
    no_feats(data)
    after = contents(data)
    assert fix(data) == ["kept all 3 utterances"]
    assert contents(data) == after and contents(data / ".backup") == before


def test_fix_filters_recordings_and_speakers(tmp_path):
    data = make(tmp_path / "d", SEGMENTED, wav_scp="rec1 x\nrec3 y\n", cmvn_scp="a f:1\nb f:2\n")
    write_map(data / "reco2dur", {"rec1": 3, "rec2": 4})
    fix(data)
    assert list(read_map(data / "utt2spk")) == list(read_map(data / "segments")) == ["a-1", "a-2"]
    assert list(read_map(data / "wav.scp")) == list(read_map(data / "reco2dur")) == ["rec1"]
    assert list(read_map(data / "cmvn.scp")) == ["a"]
    no_feats(data)


def test_fix_changes_nothing_where_it_cannot_help(tmp_path):
    for change, message in (
        ({"text": "x-1 a\n"}, "no utterance would remain"),
        ({"text": b"a-1 \xff\na-2 y\nb-1 z\n"}, "text:1: not UTF-8"),
        ({"utt2spk": "a-1 b\na-2 a\nb-1 b\n"}, "it is not by speaker"),
        ({"utt2spk": "a-1\na-2 a\nb-1 b\n"}, "utt2spk:1: '' is not one speaker"),
    ):
        data = make(tmp_path / "d", **change)
        before = contents(data)
        with pytest.raises(UserError, match=message):
            fix(data)
        assert contents(data) == before and not (data / ".fix").exists()
    unsorted = make(tmp_path / "e", utt2spk="a-1 b\na-2 a\nb-1 b\n")
    fix(unsorted, spk_sort=False)
    validate(unsorted, False, require_spk_sort=False)


def test_fix_interrupted_keeps_the_first_originals(tmp_path, monkeypatch):
    data = make(tmp_path / "d", text="b-1 z\na-1 x\na-2 y\nc-1 q\n", wav_scp="b-1 z\na-1 x\na-2 y\n")
    before = contents(data)
    real, calls = os.replace, []

    def fails_after_one_file(source, target):
        if Path(source).parent.name == kaldi_fix.STAGING and not Path(source).name.startswith("."):
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(kaldi_fix.os, "replace", fails_after_one_file)
    with pytest.raises(KeyboardInterrupt):
        fix(data)
    monkeypatch.undo()
    assert contents(data) != before
    fix(data)
    backup = contents(data / ".backup")
    assert backup == before
    no_feats(data)


names = st.text("aZé你-_09", min_size=1, max_size=4)


@st.composite
def messy_dirs(draw):
    """Files with lines in any order, repeated, missing and surplus; every utterance begins with its speaker."""
    utts = draw(st.dictionaries(names, st.sampled_from(["s1", "s2", "s3"]), min_size=1, max_size=8))
    utt2spk = {f"{spk}-{utt}": spk for utt, spk in utts.items()}
    files = {"utt2spk": [f"{utt} {spk}" for utt, spk in utt2spk.items()]}
    for name in draw(st.sets(st.sampled_from(["text", "wav.scp", "utt2dur", "feats.scp", "utt2lang"]))):
        keys = draw(st.lists(st.sampled_from([*utt2spk, "s1-other", "zz"]), min_size=1, max_size=10))
        files[name] = [f"{key} {draw(st.sampled_from(['1', '2.5']))}" for key in keys]
    for name, lines in files.items():
        files[name] = draw(st.permutations(lines))
    return {name: "".join(line + "\n" for line in lines) for name, lines in files.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=messy_dirs())
def test_fix_is_idempotent_and_ends_valid(tmp_path_factory, files):
    data = make(tmp_path_factory.mktemp("d"), files)
    try:
        fix(data)
    except UserError as error:
        assert "no utterance would remain" in str(error)
        return
    once = contents(data)
    fix(data)
    assert contents(data) == once
    (data / "utt2dur").unlink(missing_ok=True)  # Kaldi's tool does not drop utterances that are missing there
    validate(data, False, False, False)
    kept = read_map(data / "utt2spk")
    for name in files:
        if name != "utt2dur":
            assert list(read_map(data / name)) == list(kept)


# ---- subset, split, combine, copy


def large(folder: Path, speakers: int = 4, each: int = 5, **files: str) -> Path:
    """speakers x each utterances s0-00 …, duration 1 s, 2 s, …"""
    utt2spk = {f"s{spk}-{utt:02d}": f"s{spk}" for spk in range(speakers) for utt in range(each)}
    make(folder, {"text": "".join(f"{utt} text of {utt}\n" for utt in utt2spk)}, **files)
    write_map(folder / "utt2spk", utt2spk)
    write_map(folder / "utt2dur", {utt: 1.0 + i for i, utt in enumerate(utt2spk)})
    write_map(folder / "wav.scp", {utt: f"x/{utt}.wav" for utt in utt2spk})
    write_map(folder / "spk2gender", {f"s{spk}": "mf"[spk % 2] for spk in range(speakers)})
    fix(folder)
    return folder


def utts_of(folder: Path) -> list[str]:
    return list(read_map(folder / "utt2spk"))


def test_subset_choices(tmp_path):
    data, out = large(tmp_path / "d"), tmp_path / "o"
    everything = utts_of(data)

    def chosen(*arguments, **keywords) -> list[str]:
        subset(data, out, *arguments, **keywords)
        no_feats(out)
        return utts_of(out)

    assert chosen(3, "first") == everything[:3]
    assert chosen(3, "last") == everything[-3:]
    assert chosen(3, "shortest") == everything[:3]
    # halves of 20 get 1 and 2; the left 10 give 0 and 1, its 5 give 0 and 1 of 2 and 3, …: always the later part first
    assert chosen(3) == ["s1-04", "s2-04", "s3-04"]
    assert chosen(20) == everything
    assert chosen(2, "per_spk") == ["s0-00", "s0-02", "s1-00", "s1-02", "s2-00", "s2-02", "s3-00", "s3-02"]
    assert len(chosen(6, "speakers")) == 10
    assert chosen(6, "speakers") == utts_of(out)
    (tmp_path / "list").write_text("s1-03 anything\ns0-01\nnobody\n")
    assert chosen(utt_list=tmp_path / "list") == ["s0-01", "s1-03"]
    (tmp_path / "list").write_text("s2\n")
    assert chosen(spk_list=tmp_path / "list") == [f"s2-0{i}" for i in range(5)]
    assert read_map(out / "spk2gender") == {"s2": "m"}


def test_subset_refuses(tmp_path):
    data = large(tmp_path / "d")
    (tmp_path / "list").write_text("nobody\n")
    for arguments, keywords, message in (
        ((21,), {}, "cannot take 21 utterances of 20"),
        ((0,), {}, "at least 1"),
        ((), {"utt_list": tmp_path / "list"}, "none of its 1 ids"),
        ((), {"utt_list": tmp_path / "nowhere"}, "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            subset(data, tmp_path / "o", *arguments, **keywords)
    with pytest.raises(UserError, match="is the source itself"):
        subset(data, data, 3)
    with pytest.raises(UserError, match="utt2spk: no such file"):
        subset(tmp_path / "nowhere", tmp_path / "o", 3)


def test_subset_sets_stale_files_aside(tmp_path):
    data, out = large(tmp_path / "d"), make(tmp_path / "o", feats_scp="a f:1\n")
    subset(data, out, 3)
    assert not (out / "feats.scp").exists() and (out / ".backup" / "feats.scp").read_text() == "a f:1\n"


def test_subset_segments_keeps_only_used_recordings(tmp_path):
    data = make(tmp_path / "d", SEGMENTED)
    subset(data, tmp_path / "o", 1, "last")
    assert read_map(tmp_path / "o" / "wav.scp") == {"rec2": "x/2.flac"}
    no_feats(tmp_path / "o")


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0, 40.0]), min_size=1, max_size=8), parts=st.integers(1, 8))
def test_balanced_cuts_against_every_way_to_cut(weights, parts):
    parts = min(parts, len(weights))

    def heaviest(cuts) -> float:
        return max(sum(weights[a:b]) for a, b in zip(cuts, cuts[1:]))

    cuts = kaldi_tools.balanced_cuts(weights, parts)
    assert cuts[0] == 0 and cuts[-1] == len(weights) and len(cuts) == parts + 1
    assert all(a < b for a, b in zip(cuts, cuts[1:]))
    inner = itertools.combinations(range(1, len(weights)), parts - 1)
    assert heaviest(cuts) <= 1.06 * min(heaviest((0, *some, len(weights))) for some in inner) + 1e-9


def test_balanced_cuts_of_many():
    weights = [1 + (i * 7919 % 200) / 10 for i in range(20000)]
    for parts in (1, 7, 100):
        cuts = kaldi_tools.balanced_cuts(weights, parts)
        sums = [sum(weights[a:b]) for a, b in zip(cuts, cuts[1:])]
        assert max(sums) - min(sums) <= 2 * max(weights)


def test_split_by_speaker_and_by_utterance(tmp_path):
    data = large(tmp_path / "d")
    parts = split(data, 2)
    assert [str(part.relative_to(data)) for part in parts] == ["split2/1", "split2/2"]
    speakers = [set(read_map(part / "utt2spk").values()) for part in parts]
    assert not speakers[0] & speakers[1]
    totals = []
    for part in split(data, 3, per_spk=False):
        no_feats(part)
        totals.append(sum(float(seconds) for seconds in read_map(part / "utt2dur").values()))
    assert max(totals) - min(totals) < 20
    assert (data / "split3utt").is_dir()
    counts = [len(read_map(part / "utt2spk")) for part in split(data, 3, by="count", per_spk=False)]
    assert max(counts) - min(counts) <= 1


def test_split_does_nothing_twice_but_follows_changes(tmp_path):
    data = large(tmp_path / "d")
    part = split(data, 2)[0]
    times = (part / "text").stat().st_mtime_ns
    assert split(data, 2)[0] == part and (part / "text").stat().st_mtime_ns == times
    (data / "text").write_text((data / "text").read_text().replace("text of", "changed"))
    split(data, 2)
    assert "changed" in (part / "text").read_text()
    (part / "wav.scp").unlink()
    split(data, 2)
    assert (part / "wav.scp").is_file()


def test_split_refuses(tmp_path):
    data = large(tmp_path / "d")
    with pytest.raises(UserError, match="cannot split 4 speakers into 5 parts; use fewer parts or --per-utt"):
        split(data, 5)
    with pytest.raises(UserError, match="cannot split 20 utterances into 21"):
        split(data, 21, per_spk=False)
    with pytest.raises(UserError, match="at least 1"):
        split(data, 0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), segmented=st.booleans(), per_spk=st.booleans())
def test_split_then_combine_is_identity(tmp_path_factory, data, segmented, per_spk):
    folder = tmp_path_factory.mktemp("d")
    utts = data.draw(st.lists(st.tuples(st.sampled_from(["s1", "s2", "s3"]), names), min_size=1, max_size=12, unique=True))
    utt2spk = {f"{spk}-{utt}": spk for spk, utt in utts}
    write_map(folder / "utt2spk", utt2spk)
    write_map(folder / "text", {utt: data.draw(st.sampled_from(["", "a b", "你好"])) for utt in utt2spk})
    write_map(folder / "spk2gender", {spk: "m" for spk in utt2spk.values()})
    write_map(folder / "utt2dur", {utt: data.draw(st.integers(1, 20)) for utt in utt2spk})
    if segmented:
        recos = {utt: data.draw(st.sampled_from(["r1", "r2"])) for utt in utt2spk}
        write_map(folder / "segments", {utt: f"{reco} 0.5 2.25" for utt, reco in recos.items()})
        write_map(folder / "wav.scp", {reco: f"/x/{reco}" for reco in recos.values()})
    else:
        write_map(folder / "wav.scp", {utt: f"/x/{utt}.wav" for utt in utt2spk})
    fix(folder)
    count = data.draw(st.integers(1, len(set(utt2spk.values())) if per_spk else len(utt2spk)))
    parts = split(folder, count, per_spk=per_spk)
    out = tmp_path_factory.mktemp("out") / "all"
    combine(data.draw(st.permutations(parts)), out)
    no_feats(out)
    assert contents(out) == contents(folder)


def test_combine_completes_and_leaves_out(tmp_path):
    first = make(tmp_path / "1", SEGMENTED, utt2lang="a-1 en\na-2 en\nb-1 en\n")
    second = make(
        tmp_path / "2",
        {"utt2spk": "c-1 c\n", "text": "c-1 x\n", "wav.scp": "c-1 x/c.wav\n", "utt2dur": "c-1 2.5\n", "question": "c-1 why\n"},
    )
    messages = combine([first, second], tmp_path / "o")
    assert any("not combining utt2lang" in message for message in messages)
    out = DataDir.read(tmp_path / "o").utterances
    assert (out["c-1"].start, out["c-1"].end, out["c-1"].wav, out["c-1"].question) == (0.0, 2.5, "x/c.wav", "why")
    assert out["a-1"].question is None
    no_feats(tmp_path / "o")


def test_combine_refuses_conflicts(tmp_path):
    first, second = make(tmp_path / "1"), make(tmp_path / "2", text="a-1 hello\na-2\nb-1 x\n")
    with pytest.raises(UserError, match=r"2/text:1: 'a-1' is also in .*1/text:1, with another value.*copy_data_dir"):
        combine([first, second], tmp_path / "o")
    combine([first, make(tmp_path / "3")], tmp_path / "p")  # the same lines twice are no conflict
    assert contents(tmp_path / "p") == contents(first)
    with pytest.raises(UserError, match="is the source itself"):
        combine([first, second], first)


def test_combine_extra_files(tmp_path):
    first = make(tmp_path / "1", extra="a-1 1\na-2 2\nb-1 3\n")
    second = make(tmp_path / "2", {"utt2spk": "c c\n", "text": "c x\n", "wav.scp": "c x\n", "extra": "c 4\n"})
    combine([first, second], tmp_path / "o", extra_files=["extra"])
    assert read_map(tmp_path / "o" / "extra") == {"a-1": "1", "a-2": "2", "b-1": "3", "c": "4"}


def test_copy_renames_everything_but_recordings(tmp_path):
    data = make(tmp_path / "d", SEGMENTED, utt2dur="a-1 1\na-2 2\nb-1 3\n", question="b-1 q\n", stm="anything\n")
    copy(data, tmp_path / "o", utt_prefix="p-", spk_prefix="p-", utt_suffix="-s")
    out = DataDir.read(tmp_path / "o").utterances
    assert list(out) == ["p-a-1-s", "p-a-2-s", "p-b-1-s"]
    assert out["p-b-1-s"].spk == "p-b" and out["p-b-1-s"].question == "q" and out["p-b-1-s"].wav == "x/2.flac"
    assert read_map(tmp_path / "o" / "utt2uniq")["p-a-1-s"] == "a-1"
    assert (tmp_path / "o" / "stm").is_file()
    no_feats(tmp_path / "o")


def test_copy_sorts_again_and_renames_wav(tmp_path):
    data = make(tmp_path / "d", {"utt2spk": "a a\na-1 a\n", "text": "a x\na-1 y\n", "wav.scp": "a x\na-1 y\n"})
    copy(data, tmp_path / "o", utt_suffix="_n")  # "a_n" sorts after "a-1_n"
    assert list(read_map(tmp_path / "o" / "wav.scp")) == ["a-1_n", "a_n"]
    no_feats(tmp_path / "o")
