"""Kaldi data directories: what is read, what is refused and with which message."""

from __future__ import annotations

import pytest

from kaldi_dirs import SEGMENTED, make, no_feats
from steermoe.data.kaldi_dir import DataDir, read_map, write_map
from steermoe.errors import UserError


def test_read_joins_every_file(tmp_path):
    data = make(tmp_path / "d")
    write_map(data / "utt2dur", {"a-1": 1.5, "a-2": 2.0, "b-1": 12.0000634})
    write_map(data / "utt2lang", {"a-1": "en", "a-2": "en", "b-1": "zh"})
    write_map(data / "utt2num_frames", {"a-1": 150, "a-2": 200, "b-1": 1200})
    write_map(data / "question", {"b-1": "what is said?"})
    write_map(data / "question_type", {"b-1": "what"})
    write_map(data / "answers", {"b-1": "two words|yes"})
    write_map(data / "feats.scp", {"a-1": "f.ark:4", "a-2": "f.ark:99[0:49]", "b-1": "f.ark:7[0:9,0:3]"})
    utterances = DataDir.read(data).utterances
    assert list(utterances) == ["a-1", "a-2", "b-1"]
    first, second, third = utterances.values()
    assert (first.spk, first.text, first.wav, first.start, first.end) == ("a", "hello world", "x/a-1.wav", None, None)
    assert (first.duration, first.lang, first.num_frames, first.question) == (1.5, "en", 150, None)
    assert (third.question_type, third.answers, first.answers) == ("what", "two words|yes", None)
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
