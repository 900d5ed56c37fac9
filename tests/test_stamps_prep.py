"""egs/stamps: which sounds are taken, what is asked of them, that the answer cannot be had without listening."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from recipes import ROOT, Copy, contents, load_script, write_audio

from steermoe.data.kaldi_dir import DataDir, validate
from steermoe.errors import UserError

FOLDERS = ("animals/birds", "household/tools", "symbols/math")


@pytest.fixture(scope="module")
def prep():
    return load_script("stamps/local/data_prep.py")


def write_stamps(folder: Path, count: int = 8) -> Path:
    """`count` effects a label, 4 more spoken ones; a spoken caption, an effect under two names, one without a label."""
    for index, place in enumerate(FOLDERS):
        for number in range(count + 4 * (place == FOLDERS[-1])):
            write_audio(folder / place / f"{number}.wav", 0.1 + 0.01 * number + 0.2 * index)
    write_audio(folder / FOLDERS[0] / "crow_desc_es.wav", 0.37)
    shutil.copy(folder / FOLDERS[0] / "0.wav", folder / FOLDERS[0] / "another name.wav")
    write_audio(folder / "food" / "apple.wav", 0.38)
    return folder


def write_esc10(folder: Path, prep) -> Path:
    for number, title in enumerate(prep.ESC10, 1):
        for fold in range(1, 6):
            write_audio(folder / f"{number:03d} - {title}" / f"{fold}-{number}00-A.ogg", 0.1)
    return folder


def run(prep, corpus: Path, out: Path, *options: str) -> dict[str, list]:
    prep.main(["--corpus", str(corpus), "--out", str(out), *options])
    for name in prep.SETS:
        validate(out / name, require_feats=False)
    return {name: list(DataDir.read(out / name).utterances.values()) for name in prep.SETS}


def check_balance(utterances: list) -> None:
    """Every yes/no question is answered yes as often as no, and each clip is asked once of either kind."""
    asked = Counter((u.question, u.text) for u in utterances if u.text in ("yes", "no"))
    assert {asked[question, "yes"] - asked[question, "no"] for question, _ in asked} == {0}
    by_clip = {}
    for u in utterances:
        by_clip.setdefault(u.spk, []).append(u)
    for of_clip in by_clip.values():
        what, yes, no = of_clip
        question = "What sound is this?" if what.spk.startswith("esc_") else "What is making the sound?"
        assert (what.question, yes.text, no.text) == (question, "yes", "no")
        article = "" if what.text in ("rain", "waves", "fire") else "an " if what.text[0] in "aeiou" else "a "
        assert yes.question == f"Is there {article}{what.text}?"
        assert no.question != yes.question


def test_questions_about_the_stamps(prep, tmp_path, capsys):
    sets = run(prep, write_stamps(tmp_path / "c"), tmp_path / "data")
    clips = {name: {u.spk for u in found} for name, found in sets.items()}
    assert {name: len(found) for name, found in clips.items()} == {"train": 15, "dev": 3, "test": 6}
    assert len(set.union(*clips.values())) == 24 and len({u.wav for found in sets.values() for u in found}) == 24
    assert not any("desc" in u.wav or "food" in u.wav for found in sets.values() for u in found)
    for found in sets.values():
        check_balance(found)
    said = capsys.readouterr().err
    # three labels as often each: 1/3 of a third of the questions, half of the others
    floor = "18 questions: 12 is_there (2 answers), 6 what (3 answers); chance 44.4 %, each type's most frequent answer 44.4 %"
    assert f"test: {floor}" in said and "6 clips" in said
    before = contents(tmp_path / "data")
    run(prep, tmp_path / "c", tmp_path / "data")
    assert "up to date" in capsys.readouterr().err and contents(tmp_path / "data") == before


def test_esc10_keeps_its_folds_and_asks_for_its_own_things(prep, tmp_path):
    stamps, esc = write_stamps(tmp_path / "c"), write_esc10(tmp_path / "esc", prep)
    sets = run(prep, stamps, tmp_path / "data", "--esc10", str(esc))
    for name, folds in (("train", {"1", "2", "3"}), ("dev", {"4"}), ("test", {"5"})):
        of_esc = [u for u in sets[name] if u.spk.startswith("esc_")]
        assert {Path(u.wav).name[0] for u in of_esc} == folds and len(of_esc) == 30 * len(folds)
        assert {u.question_type for u in of_esc} == {"esc10_what", "esc10_is_there"}
        check_balance(of_esc)
        check_balance([u for u in sets[name] if u not in of_esc])
    questions = {u.question for u in sets["train"]}
    assert {"Is there a dog?", "Is there rain?", "Is there an animal?"} <= questions


def test_sounds_that_will_not_do(prep, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        run(prep, tmp_path / "none", tmp_path / "data")
    corpus = write_stamps(tmp_path / "c")
    for path in (corpus / "household/tools").glob("[1-9]*"):
        path.unlink()
    for path in (corpus / "animals/birds").glob("[1-9]*"):
        path.unlink()
    with pytest.raises(UserError, match="1 sounds of the label 'object', 4 are the least"):
        run(prep, corpus, tmp_path / "data")
    clips = [prep.Clip(f"c{index}", "stamps", "dog" if index < 3 else "cat", corpus) for index in range(5)]
    with pytest.raises(UserError, match="more than half of the sounds are 'dog'"):
        prep.ask(clips)
    check = prep.ask(clips[1:])
    assert sorted((s.question, s.text) for s in check if s.question_type == "is_there") == [
        (f"Is there a {label}?", answer) for label in ("cat", "dog") for answer in ("no", "no", "yes", "yes")
    ]


def test_a_folder_that_is_not_esc10(prep, tmp_path):
    with pytest.raises(UserError, match="Dog bark"):
        run(prep, write_stamps(tmp_path / "c"), tmp_path / "data", "--esc10", str(tmp_path))


def test_the_driver_takes_the_folder(prep, tmp_path):
    copy, esc = Copy(tmp_path / "copy", "stamps"), write_esc10(tmp_path / "esc", prep)
    done = copy.run("stamps", "--corpus", str(write_stamps(tmp_path / "c")), "--esc10", str(esc), "--stop-stage", "0")
    assert done.returncode == 0, done.stderr
    assert "esc_dog" in (tmp_path / "copy/egs/stamps/data/test/text").read_text()


def test_download_without_the_package_says_what_to_do(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg"):
        (programs / name).write_text("#!/bin/sh\necho 'E: Unable to locate package'\nexit 100\n")
        (programs / name).chmod(0o755)
    command = ["bash", str(ROOT / "egs/stamps/local/download.sh"), str(tmp_path / "downloads"), "--esc10", ""]
    done = subprocess.run(command, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}, text=True, capture_output=True)
    assert done.returncode == 1 and "E: Unable to locate package" in done.stderr and "--corpus DIR" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")
def test_real_download(prep, tmp_path):
    subprocess.run(["bash", str(ROOT / "egs/stamps/local/download.sh"), str(tmp_path / "d")], check=True)
    sets = run(prep, tmp_path / "d" / "tuxpaint-stamps", tmp_path / "data")
    assert {name: len({u.spk for u in found}) for name, found in sets.items()} == {"train": 98, "dev": 19, "test": 40}
