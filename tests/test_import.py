"""One's own speech to data directories: every form that it may have, what goes into which set, and every mistake's message."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import soundfile

from steermoe.data.kaldi_files import read_map
from steermoe.data.tables import read_corpus, sentences
from steermoe.errors import UserError

main = importlib.import_module("steermoe.bin.import").main


def record(path, text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(1600, np.float32), 16000)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


def rows(source):
    return [(row.audio.name, row.text, row.speaker, row.set) for row in read_corpus(source)]


def test_a_folder_with_a_text_for_each_recording(tmp_path):
    record(tmp_path / "in" / "ann" / "a b.wav", "Hello,\n world\n")
    record(tmp_path / "in" / "bob" / "x" / "1.flac", "\ufeffgood day")
    record(tmp_path / "in" / "test" / "cy" / "2.wav", "bye")
    record(tmp_path / "in" / "alone.wav", "me")
    (tmp_path / "in" / "notes.md").write_text("not speech")
    assert rows(tmp_path / "in") == [
        ("alone.wav", "me", "", ""), ("a b.wav", "Hello,\n world\n", "ann", ""), ("1.flac", "good day", "bob", ""), ("2.wav", "bye", "cy", "test"),
    ]  # fmt: skip
    found = [sentence for part in sentences(read_corpus(tmp_path / "in"), {"dev": 0.3}).values() for sentence in part]
    assert {(one.utt, one.spk, one.text) for one in found} == {
        ("alone", "alone", "me"), ("ann-a_b", "ann", "Hello, world"), ("bob-1", "bob", "good day"), ("cy-2", "cy", "bye"),
    }  # fmt: skip


def test_tables_and_json_lines(tmp_path):
    for name in ("1.wav", "2.wav"):
        record(tmp_path / "clips" / name)
    (tmp_path / "a.csv").write_text('Path,sentence,client_id,split\nclips/1.wav,"yes, please",ann,train\nclips/2.wav,no,bob,validation\n')
    (tmp_path / "a.tsv").write_text(f"text\taudio\nyes, please\tclips/1.wav\nno\t{tmp_path}/clips/2.wav\n")
    lines = [{"audio_filepath": "clips/1.wav", "text": "yes, please", "duration": 0.1}, {"audio_filepath": "clips/2.wav", "text": "no"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert rows(tmp_path / "a.csv") == [("1.wav", "yes, please", "ann", "train"), ("2.wav", "no", "bob", "dev")]
    assert rows(tmp_path / "a.tsv") == rows(tmp_path / "a.jsonl") == [("1.wav", "yes, please", "", ""), ("2.wav", "no", "", "")]


def test_a_kaldi_directory(tmp_path):
    audio = record(tmp_path / "x.wav")
    (tmp_path / "wav.scp").write_text(f"s-1 {audio}\n")
    (tmp_path / "text").write_text("s-1 hello\n")
    (tmp_path / "utt2spk").write_text("s-1 s\n")
    assert rows(tmp_path) == [("x.wav", "hello", "s", "")]
    (tmp_path / "segments").write_text("")
    with pytest.raises(UserError, match="segments: pieces of longer recordings; copy the directory to data/train"):
        read_corpus(tmp_path)


def test_speakers_are_kept_apart_where_there_are_enough(tmp_path, capsys):
    for speaker in range(10):
        for number in range(4):
            record(tmp_path / "many" / f"s{speaker}" / f"{number}.wav", "a")
    parts = sentences(read_corpus(tmp_path / "many"), {"dev": 0.1, "test": 0.2})
    speakers = {name: {one.spk for one in part} for name, part in parts.items()}
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [28, 4, 8]
    assert not speakers["train"] & speakers["dev"] and not speakers["test"] & (speakers["train"] | speakers["dev"])
    assert parts == sentences(read_corpus(tmp_path / "many"), {"dev": 0.1, "test": 0.2}) != sentences(
        read_corpus(tmp_path / "many"), {"dev": 0.1, "test": 0.2}, seed=2
    )
    assert capsys.readouterr().err == ""
    for number in range(20):
        record(tmp_path / "one" / "ann" / f"{number}.wav", "a")
    parts = sentences(read_corpus(tmp_path / "one"), {"dev": 0.1, "test": 0.1})
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [16, 2, 2]
    assert "1 speakers are too few to keep some apart" in capsys.readouterr().err


def test_ids_are_kaldis_and_nobody_elses(tmp_path):
    for name in ("ann/ann-1.wav", "ann/x/1.wav", "ann/y/1.wav", "bö b/ü.wav", "é.wav"):
        record(tmp_path / name, "a")
    found = sentences(read_corpus(tmp_path), {"dev": 0.2})
    ids = [sentence.utt for part in found.values() for sentence in part]
    assert sorted(ids) == ["_", "ann-1", "ann-1-2", "ann-1-3", "b__b-_"] and all(one.utt.startswith(one.spk) for p in found.values() for one in p)


def test_the_verb_makes_data_directories(tmp_path, capsys):
    for speaker in range(4):
        record(tmp_path / "in" / f"s{speaker}" / "1.wav", f"text {speaker}")
    main(["--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "data")])
    assert (tmp_path / "data" / "sets").read_text().split() == ["train", "dev", "test"]
    texts = [read_map(tmp_path / "data" / name / "text") for name in ("train", "dev", "test")]
    assert [len(text) for text in texts] == [2, 1, 1] and {k: v for t in texts for k, v in t.items()}["s2-1"] == "text 2"
    main(["--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "data")])
    assert "up to date" in capsys.readouterr().err
    main(["--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "data"), "--split-seed", "3", "--test-share", "0.5", "--dev-share", "0.2"])
    assert len(read_map(tmp_path / "data" / "test" / "text")) == 2
    with pytest.raises(UserError, match="--dev-share 0.5 --test-share 0.5: from 0, and below 1 together"):
        main(["--corpus", "x", "--dev-share", "0.5", "--test-share", "0.5"])
    with pytest.raises(UserError, match="test has no utterance: give more data"):
        main(["--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "data"), "--test-share", "0"])


def test_a_recording_that_is_missing_is_left_out(tmp_path, capsys):
    record(tmp_path / "1.wav")
    (tmp_path / "a.csv").write_text("audio,text\n1.wav,a\ngone.wav,b\n")
    assert rows(tmp_path / "a.csv") == [("1.wav", "a", "", "")]
    error = capsys.readouterr().err
    assert "a.csv:3" in error and "gone.wav: no such recording, left out" in error and "1 of 2 recordings are missing" in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "audio,words\n1.wav,b\n", "a.csv:1: no text: a column or key is to be named text, sentence"),
        ("a.csv", "audio,text\n1.wav\n", "a.csv:2: not as many fields"),
        ("a.csv", "audio,text\n1.wav,a,b\n", "a.csv:2: not as many fields"),
        ("a.csv", "audio,text\n1.wav, \n", "a.csv:2: 1.wav has no text"),
        ("a.csv", "audio,text,set\n1.wav,a,tset\n", "a.csv:2: set 'tset': it is one of train"),
        ("a.csv", "audio,text\n", "no recording with a text in it; a corpus is"),
        ("a.csv", b"audio,text\n1.wav,\xff\n", "a.csv: not a table in UTF-8"),
        ("a.csv", "", "a.csv:1: no audio"),
        ("a.jsonl", '{"audio": "1.wav", "text": "a"}\n{\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: not an object"),
        ("a.jsonl", '{"audio": "1.wav", "text": null}\n', "a.jsonl:1: 1.wav has no text"),
        ("a.xml", "<a/>", "a.xml: a corpus is a folder of recordings"),
        ("2.wav", None, "2.wav: no text beside it; write what is said into 2.txt"),
        ("1.txt", b"\xff", "1.txt: not UTF-8"),
        ("wav.scp", "u cat a.wav |\n", "wav.scp:1: a command, which is not run"),
        ("wav.scp", "v 1.wav\n", "wav.scp:1: v is not in .*text; utils/fix_data_dir.sh"),
    ],
)
def test_mistakes(tmp_path, name, content, message):
    record(tmp_path / "1.wav")
    (tmp_path / "text").write_text("u hello\n")
    if content is None:
        record(tmp_path / "1.wav", "a")
        record(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = tmp_path if name in ("wav.scp", "2.wav", "1.txt") else tmp_path / name
    with pytest.raises(UserError, match=message):
        read_corpus(source)


def test_no_such_corpus(tmp_path):
    with pytest.raises(UserError, match="gone: no such file or folder"):
        read_corpus(tmp_path / "gone")
