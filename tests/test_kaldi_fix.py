"""Fixing a data directory: sorted, filtered, the originals kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaldi_dirs import SEGMENTED, contents, make, names, no_feats
from steermoe.data import kaldi_fix
from steermoe.data.kaldi_dir import fix, read_map, validate, write_map
from steermoe.errors import UserError


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
