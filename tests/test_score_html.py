"""report.html and the plots of score, the audio links in it, and utils/show_result.sh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from steermoe.score import score, write_trn
from steermoe.score.audio_link import audio_link
from steermoe.score.trn import trn_id

ROOT = Path(__file__).parents[1]
REF = {"u1": "EDISON MADE it", "u2": "a b c d e f g", "u3": "right", "u4": "", "u5": "1 < 2 & 3"}
HYP = {"u1": "addison made it", "u2": "a c d x e f g", "u3": "right", "u4": "oops", "u5": "<script>alert(1)</script> < 2 & 4"}
SPEAKER = {"u1": "s-1", "u2": "s-1", "u3": "t", "u4": "e", "u5": "<b>"}


class Page(HTMLParser):
    """Elements with their attributes, and all text but the page's own script and style."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self._own = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._own = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._own = False

    def handle_data(self, data):
        self.text += "" if self._own else data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def make(folder: Path, **options) -> Page:
    write_trn(folder / "ref.trn", REF, SPEAKER)
    write_trn(folder / "hyp.trn", HYP, SPEAKER)
    score(folder / "ref.trn", folder / "hyp.trn", out_dir=folder / "out", html=True, **options)
    return Page((folder / "out" / "report.html").read_text(encoding="utf-8"))


def test_errors_intervals_and_no_injection(tmp_path):
    page = make(tmp_path, title="<i>system</i>")
    assert "(EDISON->ADDISON) made it" in page.text
    assert "a (B->*) c d (*->X) e f g" in page.text
    assert "(1->SCRIPT>ALERT(1)</SCRIPT>)" in page.text.replace("<SCRIPT>", "SCRIPT>") and "<i>system</i>" in page.text
    assert len(page.all("script")) == 1 and not any(attributes.get("src") for attributes in page.all("script"))
    own = {name for name, _ in page.elements}
    assert "img" not in own and "link" not in own and "iframe" not in own  # nothing is fetched
    assert not any(value and value.startswith(("http", "//")) for _, attrs in page.elements for value in attrs.values())
    assert "WER by length" in page.text and "WER by speaker" in page.text and "1 inserted" in page.text
    assert "edison → addison" in page.text
    for name in ("wer_by_length", "wer_by_speaker"):
        assert (tmp_path / "out" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_worst_first_and_limited(tmp_path):
    page = (make(tmp_path, worst=2), (tmp_path / "out" / "report.html").read_text())[1]
    rows = re.findall(r'<tr><td data-label="utterance">(.*?)</td>', page)
    assert len(rows) == 2 and "s_1-u2" in rows[0] or "u5" in rows[0]
    assert "the 2 of 5 utterances with the most errors" in page


def test_characters_and_the_other_engines_numbers(tmp_path):
    write_trn(tmp_path / "ref.trn", {"a-1": "你好世界"})
    write_trn(tmp_path / "hyp.trn", {"a-1": "你坏世界"})
    score(tmp_path / "ref.trn", tmp_path / "hyp.trn", "char", out_dir=tmp_path / "out", html=True)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "你(好->坏)世界" in page.text and "CER 25.0 %" in page.text
    assert (tmp_path / "out" / "plots" / "cer_by_length.png").is_file()


def test_audio(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "wav #1").mkdir()
    monkeypatch.chdir(tmp_path)
    soundfile.write("wav #1/a.wav", np.zeros(1600), 16000)
    soundfile.write("wav #1/b.aiff", np.zeros(1600), 16000)
    out = tmp_path / "exp" / "decode"
    base = {"utt": "u", "start": None, "end": None}
    assert audio_link({}, out) == ""
    assert 'src="../../wav%20%231/a.wav"' in audio_link({**base, "wav": "wav #1/a.wav"}, out)
    assert 'a.wav#t=0.5,1.25"' in audio_link({**base, "wav": "wav #1/a.wav", "start": 0.5, "end": 1.25}, out)
    assert "command" in audio_link({**base, "wav": "cat x |"}, out)
    assert "missing" in audio_link({**base, "wav": "<x>.wav"}, out) and "<x>" not in audio_link({**base, "wav": "<x>.wav"}, out)
    assert "no audio" in audio_link({**base, "wav": "nothing.g722"}, out)
    converted = re.search('src="(audio/.*?)"', audio_link({**base, "wav": "wav #1/b.aiff"}, out)).group(1)
    before = (out / converted).stat().st_mtime_ns
    assert soundfile.info(out / converted).frames == 1600 and converted.endswith(".flac")
    audio_link({**base, "wav": "wav #1/b.aiff"}, out)
    assert (out / converted).stat().st_mtime_ns == before  # made once


def test_verb_finds_audio_in_data_jsonl_and_makes_a_lost_page_again(tmp_path):
    write_trn(tmp_path / "ref.trn", REF, SPEAKER)
    write_trn(tmp_path / "hyp.trn", HYP, SPEAKER)
    lines = [{"utt": utt, "spk": SPEAKER[utt], "duration": 1.5, "wav": f"{utt}.wav", "start": None} for utt in REF]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "u1.wav").touch()
    command = [sys.executable, "-m", "steermoe.bin.score", "--ref", "ref.trn", "--hyp", "hyp.trn", "--out", "out"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}

    def run(*more: str) -> str:
        return subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stderr

    run()
    assert not (tmp_path / "out" / "report.html").exists()
    page = tmp_path / "out" / "report.html"
    html = ("--html", "true", "--data", "data.jsonl")
    run(*html)
    assert [audio["src"] for audio in Page(page.read_text()).all("audio")] == ["../u1.wav"]
    assert "up to date" in run(*html)
    page.unlink()
    assert "written" in run(*html) and page.is_file()


def test_ids_of_data_and_trn_agree():
    assert trn_id("u-1", "a-b") == "a_b-u-1"


def test_show_result(tmp_path):
    for exp, hyp in (("good", "a b c"), ("bad", "a x")):
        score({"s-1": "a b c"}, {"s-1": hyp}, out_dir=tmp_path / "exp" / exp / "decode_test")
    command = ["bash", str(ROOT / "utils" / "show_result.sh")]
    env = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], cwd=tmp_path, env=env, capture_output=True, text=True)

    table = run().stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][:10] == ["experiment", "dataset", "Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err"]
    assert [row[:2] for row in cells[2:]] == [["good", "test"], ["bad", "test"]]
    assert cells[3][2:10] == ["1", "3", "33.3", "33.3", "33.3", "0.0", "66.7", "100.0"]
    assert len({len(line) for line in table}) == 1  # aligned for the eye too
    assert [line.split("|")[1].strip() for line in run("exp/bad").stdout.splitlines()[2:]] == ["bad"]
    failed = run("exp/none")
    assert failed.returncode == 1 and "exp/none" in failed.stderr and not failed.stdout
