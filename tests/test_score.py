"""score: trn files, counts, the fixed last line, the report and its errors."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steermoe.errors import UserError
from steermoe.score import read_trn, score, write_trn
from steermoe.score import scoring
from steermoe.score.align import align, align_ids
from steermoe.score.beside import Process

ROOT = Path(__file__).parents[1]
REF = {"spka-1": "the quick brown Fox", "spka-2": "hello world", "spkb-1": "a b c d e", "spkb-2": ""}
HYP = {"spka-1": "the quick brown dog", "spka-2": "hello", "spkb-1": "a x b d e e f", "spkb-2": "oops"}


def test_counts_by_hand():
    summary = score(REF, HYP)
    assert (summary.c, summary.s, summary.d, summary.i) == (8, 1, 2, 4)
    assert summary.n == 11 and summary.sentences == 4 and summary.sentence_errors == 4
    assert summary.rate == pytest.approx(100 * 7 / 11)
    assert summary.low <= summary.rate <= summary.high


def test_fixed_line():
    line = score({"a-1": "a b c d"}, {"a-1": "a b x d"}).line()
    assert line == "WER 25.00 [25.00, 25.00] N=4 C=3 S=1 D=0 I=0"
    assert score({"a-1": "你好"}, {"a-1": "你 好"}, unit="char").line() == "CER 0.00 [0.00, 0.00] N=2 C=2 S=0 D=0 I=0"


def test_no_reference_words():
    assert score({"a-1": ""}, {"a-1": ""}).rate == 0
    assert score({"a-1": ""}, {"a-1": "x"}).rate == float("inf")


@pytest.mark.parametrize(
    "ref, hyp, steps",
    [
        ("a b c", "a b c", b"CCC"),
        ("", "", b""),
        ("", "a b", b"II"),
        ("a b", "", b"DD"),
        ("a", "a a", b"IC"),  # walking back from the end takes the last equal word
        ("a a", "a", b"DC"),
        ("a b", "c", b"DS"),
        ("a b c d", "b c d e", b"DCCCI"),  # two gaps (6) are cheaper than four substitutions
        ("a b", "b c", b"DCI"),
    ],
)
def test_alignment_by_hand(ref, hyp, steps):
    assert align([ref.split()], [hyp.split()]) == [steps]


def test_alone_and_in_any_batch():
    pairs = [("a b c d e f", "a c d x f g"), ("x", "y z"), ("q " * 300, "r q " * 140), ("", "k")]
    refs, hyps = [r.split() for r, _ in pairs], [h.split() for _, h in pairs]
    assert align(refs, hyps) == [align([r], [h])[0] for r, h in zip(refs, hyps)]


def test_two_substitutions_align_as_the_whole_table_says():
    """Pairs that differ in both ends and nothing else take a short way; where a shift is cheaper, they may not."""
    draw = random.Random(1)
    for _ in range(600):
        ref = draw.choices("abc" if draw.random() < 0.7 else "abcdefgh", k=draw.randint(1, 7))
        hyp = [draw.choice("abcdefgh") if draw.random() < 0.3 else token for token in ref]
        ids = [np.array([[ord(token)] for token in tokens], np.int32) for tokens in (ref, hyp)]
        assert align([ref], [hyp]) == align_ids(*ids, np.array([len(ref)]), np.array([len(hyp)]))


@pytest.mark.parametrize(
    "text, utterances",
    [
        ("a b (s-1)\n (s-2)\n", {"s-1": "a b", "s-2": ""}),
        ("a (um) b (s-1)\n", {"s-1": "a (um) b"}),
        (";; a (s-1)\na (s-2)\n** (x)\n", {"s-2": "a"}),
        ("a (s-1)  \nb (s-2)\r\n", {"s-1": "a", "s-2": "b"}),
        ("a (s-1)\n\nb (s-2)", {"s-1": "a", "s-2": "b"}),
        ("", {}),
    ],
)
def test_reading_trn(tmp_path, text, utterances):
    (tmp_path / "a.trn").write_bytes(text.encode())
    assert read_trn(tmp_path / "a.trn") == utterances


def test_report_files(tmp_path):
    write_trn(tmp_path / "ref.trn", {"u1": "Hello, World!", "u2": "colour"}, {"u1": "s-1", "u2": "s-1"})
    write_trn(tmp_path / "hyp.trn", {"u1": "hello world", "u2": "color"}, {"u1": "s-1", "u2": "s-1"})
    assert (tmp_path / "ref.trn").read_text() == "Hello, World! (s_1-u1)\ncolour (s_1-u2)\n"
    assert read_trn(tmp_path / "ref.trn") == {"s_1-u1": "Hello, World!", "s_1-u2": "colour"}
    summary = score(tmp_path / "ref.trn", tmp_path / "hyp.trn", "word", "english", tmp_path / "out")
    assert summary.rate == 0
    text = (tmp_path / "out" / "result.txt").read_text()
    assert "Normalizer         english" in text
    assert re.search(r"\| +s_1 +\| +2 +3 +\| *100\.0( +0\.0){5} *\|", text)  # as wide as the path above it
    assert (tmp_path / "out" / "ref.raw.trn").read_bytes() == (tmp_path / "ref.trn").read_bytes()
    assert read_trn(tmp_path / "out" / "ref.norm.trn") == {"s_1-u1": "hello world", "s_1-u2": "color"}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["line"] == summary.line()


@pytest.mark.parametrize(
    "ref, hyp, message",
    [
        ("a (s-1)\n", "", r"hyp.trn: no line for \(s-1\)"),
        ("a (s-1)\n", "a (s-1)\nb (s-2)\n", r"ref.trn: no line for \(s-2\)"),
        ("a (s-1)\nb (s-1)\n", "a (s-1)\n", r"ref.trn:2: the id \(s-1\) comes twice"),
        ("a s-1\n", "a (s-1)\n", r"ref.trn:1: not a trn line"),
        ("a (s-1\n", "a (s-1)\n", r"ref.trn:1: not a trn line"),
        ("a (s-1) b\n", "a (s-1)\n", r"ref.trn:1: not a trn line"),
        ("a ()\n", "a (s-1)\n", r"ref.trn:1: not a trn line"),
        (b"a (s-1)\nab \xe9 (s-2)\n", "a (s-1)\n", r"ref.trn:2: not UTF-8 \(byte 0xe9 at column 4\); .*--encoding \(gbk, "),
    ],
)
def test_bad_input_names_file_line_and_fix(tmp_path, ref, hyp, message):
    for name, text in (("ref.trn", ref), ("hyp.trn", hyp)):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        score(tmp_path / "ref.trn", tmp_path / "hyp.trn", out_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "result.txt").exists()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_gb_file_keeps_its_encoding_unless_it_is_normalised(tmp_path):
    texts = {"ref": "你好，Ab 世界 (王-1)\n", "hyp": "你号，ab 世界 (王-1)\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.trn").write_bytes(text.encode("gbk"))
    files, out = (tmp_path / "ref.trn", tmp_path / "hyp.trn"), tmp_path / "out"
    assert score(*files, "char", out_dir=out, encoding="gbk", html=True).line().endswith("N=7 C=6 S=1 D=0 I=0")
    report = (out / "result.txt").read_bytes().decode("gbk")
    assert re.search(r"\| +王 +\|", report) and "REF:  你 好 ， a b 世 界 \n" in report and "Options            gbk" in report
    assert (out / "ref.norm.trn").read_bytes() == (out / "ref.raw.trn").read_bytes() == files[0].read_bytes()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "(好-&gt;号)" in page and "好 → 号" in page and "王" in page
    assert score(*files, "char", "chinese", out, encoding="gbk").n == 6
    assert (out / "ref.norm.trn").read_text(encoding="utf-8") == "你好ab世界 (王-1)\n"
    assert "REF:  你 好 a b 世 界 \n" in (out / "result.txt").read_text(encoding="utf-8")
    verb = [sys.executable, "-m", "steermoe.bin.score", "--ref", files[0], "--hyp", files[1], "--out", out, "--encoding", "gbk"]
    assert "N=2 C=1 S=1" in subprocess.run(verb, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verb = [sys.executable, "-m", "steermoe.bin.compare", files[1], files[1], "--ref", files[0], "--encoding", "gbk"]
    assert "WER 50.00" in subprocess.run(verb, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with pytest.raises(UserError, match="folds the letters of babel_turkish in UTF-8 only"):
        score(*files, encoding="gbk", locale="babel_turkish")
    with pytest.raises(UserError, match="'gb' is unknown.*did you mean 'gbk'"):
        score(*files, encoding="gb")
    with pytest.raises(UserError, match="ref.trn:1: not EUC_KR"):
        (tmp_path / "ref.trn").write_bytes("丂 (s-1)".encode("gbk"))
        score(*files, encoding="euc_kr")


def test_the_same_bytes_however_many_processes_score(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "LEAST", 1)
    draw = random.Random(3)
    refs, hyps = ({f"s{n // 7}-{n}": " ".join(draw.choices("abcde", k=n % 9)) for n in range(60)} for _ in range(2))
    reports = []
    for processes in (1, 2, 3, 7):
        summary = score(refs, hyps, out_dir=tmp_path, title="t", processes=processes)
        assert summary == score(refs, hyps, processes=processes)
        reports.append((tmp_path / "result.txt").read_bytes())
    assert reports[0].count(b"\nid: (") == 60 and len(set(reports)) == 1
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_what_goes_wrong_in_another_process_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "LEAST", 1)
    refs = {f"s-{n}": "a" for n in range(9)}
    with pytest.raises(UserError, match=r"ref: \(s-8\): braces"):
        score(refs | {"s-8": "{ a"}, refs, out_dir=tmp_path, processes=3)
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(UserError, match="status -9.*memory"):
        Process(lambda: os.kill(os.getpid(), 9)).result()


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        score(tmp_path / "nothing.trn", {}, out_dir=None)


def test_verb_prints_the_line_last_and_again_when_up_to_date(tmp_path):
    write_trn(tmp_path / "ref.trn", REF)
    write_trn(tmp_path / "hyp.trn", HYP)
    command = [sys.executable, "-m", "steermoe.bin.score", "--ref", tmp_path / "ref.trn", "--hyp", tmp_path / "hyp.trn"]
    command += ["--unit", "word", "--normalizer", "none", "--out", tmp_path / "out"]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2))
    line = score(REF, HYP).line()
    assert first.stdout.splitlines()[-1] == line and second.stdout.splitlines()[-1] == line
    assert "up to date" in second.stderr
    failed = subprocess.run([*command, "--normalizer", "englsh"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode != 0 and "english" in failed.stderr


def test_importing_the_scorer_imports_no_torch():
    code = "import sys, steermoe.bin.score; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_jiwer_agrees_where_gaps_and_substitutions_cost_the_same(tmp_path):
    """Weights 4, 3, 3 may prefer four gaps to three substitutions, never fewer errors than the least number there can be."""
    jiwer = pytest.importorskip("jiwer")
    draw = random.Random(4)
    vocabulary = [f"w{number}" for number in range(200)]
    refs, hyps = {}, {}
    for number in range(300):
        words = [draw.choice(vocabulary) for _ in range(draw.randint(1, 25))]
        refs[f"a-{number}"] = " ".join(words)
        heard = [draw.choice([f"{word} {word}", "", draw.choice(vocabulary)]) if draw.random() < 0.1 else word for word in words]
        hyps[f"a-{number}"] = " ".join(heard)
    same = 0
    for utt in refs:
        other = jiwer.process_words(refs[utt], hyps[utt])
        own = score({utt: refs[utt]}, {utt: hyps[utt]})
        least = other.substitutions + other.deletions + other.insertions
        assert own.s + own.d + own.i >= least and own.i - own.d == other.insertions - other.deletions
        same += own.s + own.d + own.i == least
    assert same >= 297
