"""egs/librispeech and egs/mini_librispeech: which parts are taken, what becomes a sentence, what the driver does then."""

from __future__ import annotations

import re
import time

import pytest
from recipes import ROOT, Copy, contents, load_script, write_audio

from steermoe.errors import UserError

NOWHERE = "http://127.0.0.1:9/resources"


@pytest.fixture(scope="module")
def prep():
    return load_script("librispeech/local/data_prep.py")


@pytest.fixture(scope="module")
def parts():
    return load_script("librispeech/local/parts.py")


def make_tree(root, *names: str, suffix: str = ".flac") -> None:
    """Each part: 2 speakers of 2 sentences; the speakers' numbers sort otherwise as text than as numbers."""
    for index, name in enumerate(names):
        for speaker in (f"{index + 1}3", f"{index + 1}34"):
            chapter = root / name / speaker / "1240"
            utts = [f"{speaker}-1240-{number:04d}" for number in range(2)]
            for utt in utts:
                write_audio(chapter / f"{utt}{suffix}")
            (chapter / f"{speaker}-1240.trans.txt").write_text("".join(f"{utt} CHAPTER ONE IT'S {utt[-1]}\n" for utt in utts))


def sentences(data, name: str) -> list[str]:
    return [line.split()[0] for line in (data / name / "text").read_text().splitlines()]


ALL = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other")


@pytest.mark.parametrize("deeper", ["", "LibriSpeech"])
def test_parts_become_sets(prep, tmp_path, deeper):
    from steermoe.data.kaldi_dir import DataDir, validate

    make_tree(tmp_path / "c" / deeper, *ALL)
    data = tmp_path / "data"
    prep.main(["--corpus", str(tmp_path / "c"), "--out", str(data)])
    assert (data / "sets").read_text().split() == ["train", "dev", "test-clean", "test-other"]
    assert len(sentences(data, "train")) == 12 and len(sentences(data, "dev")) == 8 and len(sentences(data, "test-other")) == 4
    for name in ("train", "dev", "test-clean", "test-other"):
        validate(data / name, require_feats=False)
    first = next(iter(DataDir.read(data / "dev").utterances.values()))
    assert (first.utt, first.spk, first.text, first.duration) == ("43-1240-0000", "43", "chapter one it's 0", 0.5)
    prep.main(["--corpus", str(tmp_path / "c"), "--out", str(data), "--parts", "train-clean-100"])
    assert len(sentences(data, "train")) == 4 and len(sentences(data, "dev")) == 8
    prep.main(["--corpus", str(tmp_path / "c"), "--out", str(data), "--parts", "460h dev-clean test-other"])
    assert len(sentences(data, "train")) == 8 and len(sentences(data, "dev")) == 4
    assert (data / "sets").read_text().split() == ["train", "dev", "test-other"]


def test_a_second_run_does_nothing_and_changes_are_seen(prep, tmp_path, capsys):
    make_tree(tmp_path / "c", *ALL)
    words = ["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "data")]
    prep.main(words)
    before = contents(tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    prep.main(words)
    assert "up to date" in capsys.readouterr().err and times == {path: path.stat().st_mtime_ns for path in times}
    (tmp_path / "data/test-other/utt2spk").unlink()
    prep.main(words)
    assert contents(tmp_path / "data") == before
    next((tmp_path / "c/dev-other").rglob("*.flac")).unlink()
    prep.main(words)
    assert len(sentences(tmp_path / "data", "dev")) == 7
    assert "dev-other: 1 sentences without audio left out" in capsys.readouterr().err


def test_excerpts_and_other_formats(prep, tmp_path, capsys):
    make_tree(tmp_path, "train-clean", suffix=".opus")
    make_tree(tmp_path, "dev-clean", suffix=".wav")
    make_tree(tmp_path, "test-clean")
    extra = tmp_path / "test-clean/13/1240"
    write_audio(extra / "13-1240-0009.flac")
    (extra / "13-1240-0001.flac").write_bytes(b"fLaC")
    prep.main(["--corpus", str(tmp_path), "--out", str(tmp_path / "data")])
    printed = capsys.readouterr().err
    assert f"test-other is not in {tmp_path}: no such set is made" in printed
    assert "dev-clean: 4 utterances, 2703 are published: an excerpt" in printed and "train-clean:" not in printed
    assert "1 audio files without a transcript left out" in printed
    assert "13-1240-0001.flac" in printed and "1 dropped: unreadable" in printed
    assert (tmp_path / "data/sets").read_text().split() == ["train", "dev", "test-clean"]
    assert sentences(tmp_path / "data", "test-clean") == ["13-1240-0000", "134-1240-0000", "134-1240-0001"]


def test_wrong_trees_are_named(prep, tmp_path):
    def run(*more: str):
        prep.main(["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "data"), *more])

    with pytest.raises(UserError, match="no such folder; run stage -1"):
        run()
    (tmp_path / "c/wav").mkdir(parents=True)
    with pytest.raises(UserError, match="not LibriSpeech: it has no <part>/.*, but wav; give --corpus DIR"):
        run()
    (tmp_path / "c/train-clean-100").mkdir()
    with pytest.raises(UserError, match="not LibriSpeech"):  # an empty part is none
        run()
    make_tree(tmp_path / "c", "train-clean-100")
    with pytest.raises(UserError, match="no dev part: .* has train-clean-100; a run needs"):
        run()
    make_tree(tmp_path / "c", "dev-clean")
    with pytest.raises(UserError, match="--parts: train-clean-360 missing: .* has dev-clean, train-clean-100"):
        run("--parts", "460h")
    with pytest.raises(UserError, match="did you mean 'train-clean-100'"):
        run("--parts", "train-clen-100")
    with pytest.raises(UserError, match="names no train part"):
        run("--parts", "dev-clean")
    transcripts = tmp_path / "c/train-clean-100/13/1240/13-1240.trans.txt"
    transcripts.write_text("13-1240-0000 A\n99-1240-0000 B\n")
    with pytest.raises(UserError, match=r"trans.txt:2: '99-1240-0000 B' is not `13-CHAPTER"):
        run()
    assert not (tmp_path / "data").exists()


def test_which_parts_a_word_means(parts):
    test = ["test-clean", "test-other"]
    assert parts.resolve("460h") == (["train-clean-100", "train-clean-360"], ["dev-clean", "dev-other", *test])
    assert parts.resolve("960h dev-clean test-clean")[0][:3] == ["train-clean-100", "train-clean-360", "train-other-500"]
    assert parts.resolve("train-clean-100 dev-clean") == (["train-clean-100", "dev-clean"], test)
    assert parts.resolve("train-clean-5") == (["train-clean-5"], ["dev-clean-2", "test-clean"])
    assert len(set(part.md5 for part in parts.PARTS.values())) == 9
    assert all(re.fullmatch("[0-9a-f]{32}", part.md5) for part in parts.PARTS.values())
    files = [archive.file for archive in parts.archives(["dev-clean-2", "test-clean"])]
    assert files == ["31/dev-clean-2.tar.gz", "12/test-clean.tar.gz"]
    with pytest.raises(UserError, match="'train-clean' is not published"):
        parts.archives(["train-clean"])


@pytest.mark.parametrize("name, file", [("librispeech", "12/train-clean-100"), ("mini_librispeech", "31/train-clean-5")])
def test_without_network_and_corpus_one_message_within_seconds(tmp_path, name, file):
    copy = Copy(tmp_path / "r", "librispeech", "mini_librispeech")
    before = contents(copy.root / "egs")
    for stage in ("-1", "0", "5"):
        begun = time.monotonic()
        done = copy.run(name, "--stage", stage, "--mirror", NOWHERE)
        assert done.returncode == 1 and done.stdout == "" and time.monotonic() - begun < 20
        (line,) = done.stderr.strip().splitlines()
        assert f"{NOWHERE}/{file}.tar.gz cannot be reached (Connection refused)" in line
        assert "give --corpus DIR" in line and "cd ../asterisk && ./run.sh" in line
    after = {file: text for file, text in contents(copy.root / "egs").items() if "__pycache__" not in file}
    assert after == before and not (copy.root / "calls").exists()


def test_the_recipes_options(tmp_path):
    copy = Copy(tmp_path / "r", "librispeech", "mini_librispeech")
    done = copy.run("librispeech", "--help")
    assert done.returncode == 0 and re.search(r"--parts .*460h, 960h", done.stdout) and "--mirror" in done.stdout
    assert re.search(r"--parts .*\n +\(default: train-clean-5\)", copy.run("mini_librispeech", "--help").stdout)
    done = copy.run("librispeech", "--part", "x")
    assert done.returncode == 1 and "did you mean --parts?" in done.stderr
    done = copy.run("librispeech", "--parts", "train-clean-10", "--mirror", NOWHERE)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "did you mean 'train-clean-100'" in done.stderr


def test_an_excerpt_runs_to_the_end_and_later_runs_need_no_corpus(tmp_path):
    copy = Copy(tmp_path / "a repository", "librispeech")
    make_tree(tmp_path / "my corpus", "train-clean", "dev-clean", "test-clean")
    done = copy.run("librispeech", "--stage", "0", "--corpus", str(tmp_path / "my corpus"))
    assert done.returncode == 0, done.stderr
    recipe = copy.root / "egs/librispeech"
    assert "test-other is not in" in done.stderr and "decode_test-clean_default/result.txt" in done.stdout
    assert not (recipe / "data/test-other").exists() and not (recipe / "downloads").exists()
    (recipe / "conf/train_conformer.yaml").write_text("encoder: conformer\n")
    done = copy.run("librispeech", "--stage", "5", "--encoder", "conformer")
    assert done.returncode == 0, done.stderr
    assert "exp/conformer/decode_test-clean_default/result.txt" in done.stdout and "test-other" not in done.stdout
    done = copy.run("librispeech", "--stage", "5", "--test-sets", "test-other", "--corpus", str(tmp_path / "my corpus"))
    assert done.returncode == 1 and "data/test-other is missing; the data sets of this corpus are:" in done.stderr
    make_tree(tmp_path / "my corpus", "test-other")
    done = copy.run("librispeech", "--stage", "0", "--corpus", str(tmp_path / "my corpus"))
    assert done.returncode == 0 and "decode_test-other_default/result.txt" in done.stdout, done.stderr


def test_a_tree_of_another_corpus_ends_at_stage_0(tmp_path):
    copy = Copy(tmp_path / "r", "librispeech", "mini_librispeech")
    (tmp_path / "other/wav").mkdir(parents=True)
    done = copy.run("mini_librispeech", "--corpus", str(tmp_path / "other"), "--stop-stage", "0")
    assert done.returncode == 1 and done.stderr.count("error:") == 1 and "not LibriSpeech" in done.stderr


def test_the_shared_excerpt(prep, shared_data, tmp_path, capsys):
    corpus = shared_data / "LibriSpeech"
    if not corpus.is_dir():
        pytest.skip("no LibriSpeech in ../shared/data")
    prep.main(["--corpus", str(corpus), "--out", str(tmp_path)])
    counts = {name: len(sentences(tmp_path, name)) for name in ("train", "dev", "test-clean")}
    assert counts == {"train": 697, "dev": 60, "test-clean": 78} and "test-other is not in" in capsys.readouterr().err


def test_run_scripts_are_short():
    for path in (ROOT / "egs").glob("*/run.sh"):
        assert len(path.read_text().splitlines()) <= 60, path
