"""Subset, split, combine and copy, as Kaldi does."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaldi_dirs import SEGMENTED, contents, make, names, no_feats
from steermoe.data import kaldi_tools
from steermoe.data.kaldi_dir import DataDir, combine, copy, fix, read_map, split, subset, write_map
from steermoe.errors import UserError


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
        answers="c-1 so|so\n",
        question_type="c-1 why\n",
    )
    messages = combine([first, second], tmp_path / "o")
    assert any("not combining utt2lang" in message for message in messages)
    out = DataDir.read(tmp_path / "o").utterances
    assert (out["c-1"].start, out["c-1"].end, out["c-1"].wav, out["c-1"].question) == (0.0, 2.5, "x/c.wav", "why")
    assert (out["c-1"].question_type, out["c-1"].answers, out["a-1"].question) == ("why", "so|so", None)
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
