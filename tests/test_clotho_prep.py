"""egs/clotho_aqa: what becomes of the tables and the clips, the download, and the published counts where the tables are at hand."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
from recipes import ROOT, Copy, contents, load_script, write_audio
from test_openslr import Server

from steermoe.data.kaldi_dir import DataDir, validate
from steermoe.errors import UserError

SHARED = ROOT.parent / "shared" / "data" / "clotho_aqa"
# file_name, question, three answers; the first clip's second question on the test table has no majority
TABLES = {
    "train": [
        ("rain on roof.wav", "Is it raining?", "yes yes no"),
        ("rain on roof.wav", "What falls?", "rain water rain"),
        ("Bob&#39;s dog.m4a.wav", "How many dogs?", "one two three"),
        ("Bob&#39;s dog.m4a.wav", "What's barking?", "dog dog dog"),
    ],
    "val": [("a.wav", "Are there birds?", "no no yes"), ("a.wav", "Who sings?", "bird man woman")],
    "test": [
        ("rain, again.wav", 'Is the "rain" loud?', "yes no yes"),
        ("rain, again.wav", "Where is it?", "outside street roof"),
        ("gone.wav", "Whose is it?", "his his his"),
    ],
}
CLIPS = ("rain on roof.wav", "Bob's dog.m4a.wav", "a.flac", "rain, again.wav")


@pytest.fixture(scope="module")
def prep():
    return load_script("clotho_aqa/local/data_prep.py")


def write_corpus(folder: Path, clips=CLIPS) -> Path:
    import csv

    for clip in clips:
        write_audio(folder / "audio" / clip)
    for name, questions in TABLES.items():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"clotho_aqa_{name}.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file_name", "QuestionText", "answer", "confidence"])
            writer.writerows([clip, text, answer, "yes"] for clip, text, answers in questions for answer in answers.split())
    return folder


def run(prep, corpus: Path, out: Path, *options: str) -> dict[str, list]:
    prep.main(["--corpus", str(corpus), "--out", str(out), *options])
    return {name: list(DataDir.read(out / name).utterances.values()) for name in ("train", "dev", "test") if (out / name).is_dir()}


def test_tables_and_clips_become_questions(prep, tmp_path, capsys):
    sets = run(prep, write_corpus(tmp_path / "c"), tmp_path / "data")
    assert (tmp_path / "data" / "sets").read_text().split() == ["train", "dev", "test"]
    for name in sets:
        validate(tmp_path / "data" / name, require_feats=False)
    what = {name: {(u.text, u.question_type, u.answers) for u in found} for name, found in sets.items()}
    assert what == {
        "train": {("yes", "is", "yes|yes|no"), ("rain", "what", "rain|water|rain"), ("dog", "what", "dog|dog|dog")},
        "dev": {("no", "is_there", "no|no|yes")},  # the question without a majority is left out
        "test": {("yes", "is", "yes|no|yes"), ("outside", "where", "outside|street|roof")},  # and here kept, for the paper's figure
    }
    prompts = [u.question for u in sets["test"]]
    assert prompts[0] == 'please answer the following question. The question is : Is the "rain" loud?'
    assert sets["test"][0].utt == sets["test"][0].spk + "-q01" and sets["test"][0].spk.startswith("rain_again_")
    assert {Path(u.wav).name for found in sets.values() for u in found} == set(CLIPS)
    said = capsys.readouterr().err
    assert "test: 1 of 2 clips are missing (gone.wav; all of them in" in said and "1 of 3 questions left out" in said
    assert "test: 2 questions, at least 2 annotators agree on 1" in said
    assert (tmp_path / "data" / "missing").read_text() == "test\tgone.wav\n"
    before = contents(tmp_path / "data")
    run(prep, tmp_path / "c", tmp_path / "data")
    assert "up to date" in capsys.readouterr().err and contents(tmp_path / "data") == before


def test_all_answers_and_another_prompt(prep, tmp_path):
    sets = run(prep, write_corpus(tmp_path / "c"), tmp_path / "data", "--train-answers", "all", "--prompt", "{question} One word.")
    rain = [(u.utt[-6:], u.text, u.question) for u in sets["train"] if u.spk.startswith("rain") and "q02" in u.utt]
    assert rain == [(f"q02-a{n}", text, "What falls? One word.") for n, text in enumerate(["rain", "water", "rain"], 1)]
    assert len(sets["train"]) == 12 and len(sets["dev"]) == 1 and sets["train"][0].answers is None
    with pytest.raises(UserError, match="must stand in it"):
        run(prep, tmp_path / "c", tmp_path / "data", "--prompt", "why?")


def test_the_sets_that_have_clips(prep, tmp_path, capsys):
    sets = run(prep, write_corpus(tmp_path / "c", CLIPS[:2]), tmp_path / "data")
    assert len({u.spk for u in sets["train"]}) == 1 and len({u.spk for u in sets["dev"]}) == 1 and "test" not in sets
    assert "training clips take their place: 1" in capsys.readouterr().err
    only_test = run(prep, write_corpus(tmp_path / "t", CLIPS[3:]), tmp_path / "tested")
    assert list(only_test) == ["test"]  # an adapter from elsewhere can answer it
    for clips, message in (((), "none of the 5 clips"), (CLIPS[:1], "train has only one")):
        with pytest.raises(UserError, match=message):
            run(prep, write_corpus(tmp_path / f"few{len(clips)}", clips), tmp_path / "few")


@pytest.mark.parametrize(
    "table, message",
    [
        ("file_name,QuestionText\n", "train.csv:1: no column answer"),
        ("file_name,QuestionText,answer\na.wav,why,\n", "train.csv:2: no answer"),
        (None, "no clotho_aqa_train.csv"),
    ],
)
def test_broken_tables_are_named(prep, tmp_path, table, message):
    file = write_corpus(tmp_path / "c") / "clotho_aqa_train.csv"
    file.unlink() if table is None else file.write_text(table)
    with pytest.raises(UserError, match=message):
        run(prep, tmp_path / "c", tmp_path / "data")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published tables (../shared/data/clotho_aqa) are not here")
def test_published_counts(prep, tmp_path):
    tables = {name: prep.read_table(prep.find_table(SHARED, table)) for name, table in prep.TABLES.items()}
    assert {name: len(table) for name, table in tables.items()} == {"train": 7044, "dev": 2064, "test": 2838}
    clips = {question.clip: Path("clip.wav") for table in tables.values() for question in table}
    sets = {n: prep.sentences(n, t, clips, Namespace(prompt="{question}", train_answers="majority")) for n, t in tables.items()}
    agreed = {n: sum(s.answers.split("|").count(s.text) >= 2 for s in found) for n, found in sets.items()}
    assert agreed == {"train": 6181, "dev": 1823, "test": 2476}
    assert (len(sets["dev"]), len(sets["test"]), len({s.utt for found in sets.values() for s in found})) == (1823, 2838, 10842)
    rows = prep.sentences("train", tables["train"], clips, Namespace(prompt="{question}", train_answers="all"))
    assert len(rows) == 21132 and len({row.utt for row in rows}) == 21132
    answers = [answer for question in tables["test"] for answer in question.answers]
    assert round(100 * answers.count("yes") / len(answers), 1) == 37.8


@pytest.fixture
def zenodo(tmp_path):
    """A server with the record: its description, the tables, and the clips in a zip file."""
    server = Server()
    corpus, stream = write_corpus(tmp_path / "published"), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for clip in CLIPS:
            archive.write(corpus / "audio" / clip, f"audio_files/{clip}")
    content = {f"clotho_aqa_{name}.csv": (corpus / f"clotho_aqa_{name}.csv").read_bytes() for name in TABLES}
    content |= {"clotho_aqa_metadata.csv": b"file_name\n", "audio_files.zip": stream.getvalue()}
    server.files = {f"/records/6473207/files/{name}": data for name, data in content.items()}
    sums = [{"key": name, "checksum": f"md5:{hashlib.md5(data).hexdigest()}"} for name, data in content.items()]
    server.files["/api/records/6473207"] = json.dumps({"files": sums}).encode()
    server.url = server.url.removesuffix("/resources")
    yield server
    server.server.shutdown()


def test_download(prep, zenodo, tmp_path):
    download = load_script("clotho_aqa/local/download.py")
    words = [str(tmp_path / "downloads"), "--mirror", zenodo.url, "--train-answers", "all", "--prompt", "{question}"]
    download.main([*words, "--check", "true"])
    assert not (tmp_path / "downloads").exists()
    download.main(words)
    assert len(run(prep, tmp_path / "downloads" / "clotho_aqa", tmp_path / "data")["test"]) == 2
    zenodo.files.clear()
    download.main(words)  # everything is there: nothing is asked for


def test_a_damaged_download_is_refused(zenodo, tmp_path):
    download = load_script("clotho_aqa/local/download.py")
    zenodo.files["/records/6473207/files/clotho_aqa_val.csv"] = b"another table"
    with pytest.raises(UserError, match="clotho_aqa_val.csv: MD5"):
        download.main([str(tmp_path / "downloads"), "--mirror", zenodo.url])
    del zenodo.files["/api/records/6473207"]
    with pytest.raises(UserError, match="give --corpus DIR, a folder with the corpus's CSV tables"):
        download.main([str(tmp_path / "d"), "--mirror", zenodo.url])


def test_the_driver_hands_the_options_on(tmp_path):
    copy = Copy(tmp_path / "copy", "clotho_aqa")
    done = copy.run("clotho_aqa", "--corpus", str(write_corpus(tmp_path / "c")), "--train-answers", "all", "--stop-stage", "0")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "copy" / "egs" / "clotho_aqa" / "data"
    assert len((data / "train" / "text").read_text().splitlines()) == 12
    unreachable = copy.run("clotho_aqa", "--mirror", "http://127.0.0.1:9", "--stage", "-1")
    assert unreachable.returncode == 1 and "give --corpus DIR" in unreachable.stderr
