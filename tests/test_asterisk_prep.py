"""egs/asterisk/local: which prompts become utterances, what is said in them, and a split that is disjoint in text."""

from __future__ import annotations

import gzip
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steermoe.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "egs" / "asterisk" / "local"


@pytest.fixture(scope="module")
def prep():
    spec = importlib.util.spec_from_file_location("asterisk_data_prep", LOCAL / "data_prep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = "press star pound number message mailbox enter the please to one extension call hold for new zero party line".split()


def make_corpus(folder: Path, count: int = 120, packed: bool = True) -> dict[str, str]:
    """Noise in G.722, and transcripts of 1 to 20 words with repeated texts; returns the transcripts."""
    chance = random.Random(1)
    texts = {f"prompt-{index}": " ".join(chance.choices(WORDS, k=1 + index % 20)) for index in range(count)}
    texts |= {"digits/1": "One.", "vm-one": "one", "vm-exit": "To exit...", "vm-exit2": "...to exit."}
    texts |= {"beep": "[a tone]", "silence/1": "(1 second of silence)", "join": "<beep>", "letters/at": "at [@]"}
    for key in texts:
        path = folder / "sounds" / "en_US" / f"{key}.g722"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(4000))
    lines = "; comment\n\n" + "".join(f"{key}: {text}\n" for key, text in texts.items()) + "no-sound: nobody reads this\n"
    (folder / "doc").mkdir()
    if packed:
        (folder / "doc/core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        (folder / "doc/core-sounds-en.txt").write_text(lines)
    return texts


@pytest.mark.parametrize("packed", [True, False])
def test_split_is_disjoint_in_utterances_and_text(prep, tmp_path, capsys, packed):
    from steermoe.data.kaldi_dir import DataDir, validate

    make_corpus(tmp_path / "corpus", packed=packed)
    prep.main(["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data")])
    printed = capsys.readouterr().err
    assert "3 dropped: not speech" in printed and "1 dropped: no such sound file" in printed
    texts, utts = {}, {}
    for name in ("train", "dev", "test"):
        validate(tmp_path / "data" / name, require_feats=False)
        data = DataDir.read(tmp_path / "data" / name)
        utts[name] = set(data.utterances)
        texts[name] = {prep.bare_words(u.text) for u in data.utterances.values()}
        assert all(u.spk == "allison" and abs(u.duration - 0.5) < 1e-3 for u in data.utterances.values())
    assert sum(map(len, utts.values())) == 120 + 5 == len(set.union(*utts.values()))
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not utts[a] & utts[b] and not texts[a] & texts[b]
    assert 10 <= len(utts["test"]) <= 40 and 10 <= len(utts["dev"]) <= 40
    single = [text for text in texts["test"] if len(text.split()) == 1]
    assert len(single) < len(texts["test"]) / 4


def test_a_second_run_does_nothing_and_a_changed_corpus_is_read_again(prep, tmp_path, capsys):
    make_corpus(tmp_path / "corpus")
    words = ["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data")]
    prep.main(words)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "data").rglob("*") if path.is_file()}
    prep.main(words)
    assert "up to date" in capsys.readouterr().err
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    (tmp_path / "data/dev/text").unlink()
    prep.main(words)
    assert {path: path.read_bytes() for path in before} == {path: content for path, (_, content) in before.items()}
    (tmp_path / "corpus/sounds/en_US/prompt-3.g722").unlink()
    prep.main(words)
    assert "2 dropped: no such sound file" in capsys.readouterr().err


def test_unreadable_sounds_are_dropped_with_their_names(prep, tmp_path, capsys):
    make_corpus(tmp_path / "corpus")
    (tmp_path / "corpus/sounds/en_US/prompt-7.g722").write_bytes(b"")
    prep.main(["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data")])
    printed = capsys.readouterr().err
    assert "1 dropped: unreadable" in printed and "prompt-7.g722" in printed
    assert not any("prompt-7 " in path.read_text() for path in (tmp_path / "data").glob("*/wav.scp"))


@pytest.mark.parametrize(
    "written, spoken",
    [
        ("  Please   hold.  ", "Please hold."),
        ("at [@]", "at"),
        ('IAX (note: does not say "2")', "IAX"),
        ("<beep ascending>", ""),
        ("space [ ]", "space"),
        ("press * to toggle pause, press # to exit", "press star to toggle pause, press pound to exit"),
        ("...in *ours*", "...in *ours*"),
    ],
)
def test_what_is_said(prep, written, spoken):
    assert prep.spoken_text(written) == spoken


def test_bare_words_ignore_case_and_punctuation(prep):
    assert prep.bare_words("To lock, or unlock: the party's line...") == prep.bare_words("to lock or unlock the PARTY'S line")
    assert prep.bare_words("O'Clock - A.M.") == "o'clock a m" and prep.bare_words("...!") == ""


def test_long_prompts_stay_out_of_dev_and_test(prep):
    prompts = {
        f"allison-{index}": prep.Prompt(Path("x"), f"word number {index} of many", 40.0 if index % 2 else 3.0) for index in range(80)
    }
    parts = prep.split(prompts)
    assert all(prompts[utt].seconds < 30 for name in ("dev", "test") for utt in parts[name])
    other_order = prep.split(dict(reversed(prompts.items())))
    assert all(set(parts[name]) == set(other_order[name]) for name in parts)


def test_bad_corpora_are_named(prep, tmp_path):
    def run():
        prep.main(["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "data")])

    with pytest.raises(UserError, match="no such folder; run stage -1"):
        run()
    (tmp_path / "corpus").mkdir()
    with pytest.raises(UserError, match="no core-sounds-en.txt"):
        run()
    transcripts = tmp_path / "corpus/core-sounds-en.txt"
    transcripts.write_text("a: One.\nb is two\n")
    with pytest.raises(UserError, match="core-sounds-en.txt:2: no colon"):
        run()
    transcripts.write_text("a: One.\na: Two.\n")
    with pytest.raises(UserError, match="core-sounds-en.txt:2: 'a' occurs a second time"):
        run()
    transcripts.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(UserError, match="core-sounds-en.txt:1: not UTF-8"):
        run()
    transcripts.write_text("a: One.\n")
    with pytest.raises(UserError, match="no .g722, .wav, .flac files"):
        run()
    (tmp_path / "corpus/b.g722").write_bytes(bytes(4000))
    with pytest.raises(UserError, match="no sound in it has a line in the transcripts"):
        run()
    (tmp_path / "corpus/a.g722").write_bytes(bytes(4000))
    with pytest.raises(UserError, match="too few to split"):
        run()
    (tmp_path / "corpus/core-sounds-en.txt").unlink()
    (tmp_path / "corpus/core-sounds-en.txt.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(UserError, match="core-sounds-en.txt.gz: not gzipped"):
        run()


def test_download_without_apt_names_both_ways_on(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "mkdir"):
        (programs / name).symlink_to(shutil.which(name))
    command = [shutil.which("bash"), str(LOCAL / "download.sh"), str(tmp_path / "downloads")]
    done = subprocess.run(command, env={"PATH": str(programs)}, text=True, capture_output=True)
    assert done.returncode == 1 and "no apt-get" in done.stderr
    assert "--corpus DIR" in done.stderr and "Debian or Ubuntu machine or container" in done.stderr
    assert not (tmp_path / "downloads").exists()


def test_download_leaves_nothing_when_the_packages_cannot_be_had(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg"):
        (programs / name).write_text("#!/bin/sh\necho 'E: Unable to locate package'\nexit 100\n")
        (programs / name).chmod(0o755)
    command = ["bash", str(LOCAL / "download.sh"), str(tmp_path / "downloads")]
    done = subprocess.run(command, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}, text=True, capture_output=True)
    assert done.returncode == 1 and "E: Unable to locate package" in done.stderr and "--corpus DIR" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")
def test_real_download_and_split(tmp_path):
    subprocess.run(["bash", str(LOCAL / "download.sh"), str(tmp_path)], check=True)
    command = [sys.executable, str(LOCAL / "data_prep.py"), "--corpus", str(tmp_path), "--out", str(tmp_path / "data")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    counts = {name: len((tmp_path / "data" / name / "text").read_text().splitlines()) for name in ("train", "dev", "test")}
    assert counts == {"train": 420, "dev": 63, "test": 68}
