"""The verb `transcribe` as a user types it, in this process, on a tiny random model."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from toneme import silence, speak

from steermoe.bin.transcribe import chunks, main
from steermoe.checkpoint import save_adapter
from steermoe.errors import UserError


@pytest.fixture()
def folder(tiny_model, tiny_config, tmp_path, monkeypatch):
    """With adapter.safetensors, short.wav, long.flac (about 15 s of which 4 are read at a time) and their transcripts."""
    tiny_config.data_conf.max_seconds = 4.0
    save_adapter(tmp_path / "adapter.safetensors", tiny_model, tiny_config, 7, {})
    soundfile.write(tmp_path / "short.wav", speak([1, 2, 3]), 16000)
    long = np.concatenate([np.concatenate([speak([1, 2, 3, 4]), silence(0.6)]) for _ in range(6)])
    soundfile.write(tmp_path / "long.flac", long, 16000)
    (tmp_path / "text").write_text("long be bi\nshort be bi bo\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def transcribe(*words):
    main(["--model", "adapter.safetensors", *words])


def test_files_of_any_length_in_order(folder, capsys):
    transcribe("long.flac", "short.wav")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["long.flac", "short.wav"]
    transcribe("--format", "json", "--ref", "text", "long.flac", "short.wav")
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [f"{record['file']}\t{record['text']}" for record in records] == lines and "whole: WER" in err
    times = [(part["start"], part["end"]) for part in records[0]["segments"]]
    assert len(times) >= 4 and all(0 < end - start <= 4.0 for start, end in times) and times[-1][1] < 16


def test_subtitles(folder, capsys):
    transcribe("--format", "srt", "long.flac")
    assert capsys.readouterr().out.startswith("1\n00:00:00,000 --> 00:00:0")
    transcribe("--format", "vtt", "long.flac")
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_words_while_audio_arrives(folder, capsys, monkeypatch):
    """A file, and the same samples on standard input, which is read as it comes; the error rate beside the whole file's."""
    transcribe("--stream", "--chunk", "0.5", "--ref", "text", "short.wav")
    out, err = capsys.readouterr()
    assert out.startswith("short.wav\t") and out.count("\n") == 1
    assert "1.4 s in chunks of 0.5 s" in err and "in a stream: WER" in err and "whole: WER" in err
    raw = soundfile.read("short.wav", dtype="int16")[0].tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    transcribe("--stream", "--chunk", "0.5", "--format", "json", "-")
    partials = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [partial["heard"] for partial in partials] == [0.5, 1.0, 1.38, 1.38] and partials[-1]["open"] == ""
    assert "".join(partial["new"] for partial in partials) == out.rstrip("\n").split("\t")[1]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    transcribe("-")
    assert capsys.readouterr().out.startswith("-\t")


def test_chunks_at_the_speed_of_speech(folder, monkeypatch):
    """The clock of the sleeps, not the machine's."""
    clock = [0.0]
    ours = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr("steermoe.bin.transcribe.time", ours)  # the module's name: other threads keep the real one
    arrivals = [(len(chunk), clock[0]) for chunk in chunks("short.wav", 0.5, real_time=True)]
    assert arrivals == [(8000, 0.5), (8000, 1.0), (6080, 1.38)]
    clock[0] = 0.0
    assert [len(chunk) for chunk in chunks("short.wav", 1.0)] == [16000, 6080] and clock[0] == 0.0


@pytest.mark.parametrize(
    "words, message",
    [
        (("--format", "srt", "short.wav", "long.flac"), "give one, without --stream"),
        (("--format", "vtt", "--stream", "short.wav"), "give one, without --stream"),
        (("--chunk", "0", "short.wav"), "--chunk 0.0: seconds of audio"),
        (("-", "-"), "standard input is read once"),
        (("--ref", "text", "-"), "no transcript in --ref"),
        (("--ref", "text", "adapter.safetensors"), "adapter.safetensors: cannot be read as audio"),
        (("--ref", "text", "other.wav"), "no transcript of other, which is other.wav"),
        (("missing.wav",), "missing.wav: no such audio file"),
    ],
)
def test_bad_input_is_named(folder, words, message):
    soundfile.write("other.wav", speak([1]), 16000)
    with pytest.raises(UserError, match=message):
        transcribe(*words)
