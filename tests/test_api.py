"""The Python front door, on a tiny random model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from toneme import silence, speak

import steermoe
from steermoe.checkpoint import read_metadata, save_adapter
from steermoe.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def model(tiny_model, tiny_config, tmp_path):
    tiny_config.data_conf.max_seconds = 4.0
    tiny_config.decode_conf.batch_frames = 300
    save_adapter(tmp_path / "adapter.safetensors", tiny_model, tiny_config, 7, {"git": "abc"})
    return steermoe.SteerMoE.from_pretrained(tmp_path)


def test_a_file_an_array_and_a_list_of_them(model, tmp_path):
    samples = speak([1, 2, 3, 4])
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    text = model.transcribe(tmp_path / "a.wav")
    assert isinstance(text, str) and model.transcribe(samples) == text == model.transcribe(torch.from_numpy(samples))
    assert model.transcribe([str(tmp_path / "a.wav"), samples, iter([samples[:999], samples[999:]])]) == [text] * 3
    assert model.transcribe((samples * 32767).round().astype(np.int16)) == text
    assert model.transcribe([]) == [] and model.transcribe(np.repeat(samples, 2), 32000) != ""


def test_long_recordings_are_batched_in_order(model):
    long = np.concatenate([np.concatenate([speak([1, 2, 3, 4, 5]), silence(0.6)]) for _ in range(6)])
    short = [speak([word, word + 1]) for word in range(5)]
    heard: list[float] = []
    coming = model.transcripts([short[0], long, *short[1:]], heard=heard.append)
    transcripts = [next(coming)]
    assert heard  # progress is there before the first text, for who waits for it
    transcripts += coming
    assert len(transcripts) == 6 and len(transcripts[1].segments) >= 4 and len(heard) > 1
    assert sum(heard) >= (sum(map(len, short)) + len(long)) / 16000 - 6
    assert [transcripts[i].text for i in (0, 2, 3, 4, 5)] == [model.transcribe(samples) for samples in short]
    assert all(segment.end - segment.start <= 4.0 for segment in transcripts[1].segments)
    assert list(model.transcripts([np.zeros(16000 * 9, np.float32)]))[0].text == ""


def test_a_recording_is_read_as_it_is_needed(model):
    """The first group of pieces is decoded long before the end has been read."""
    taken = []

    def blocks():
        for number in range(20):
            taken.append(number)
            yield np.concatenate([speak([1, 2, 3, 4, 5, 6]), silence(0.5)])

    heard = []
    list(model.transcripts([blocks()], heard=lambda seconds: heard.append(len(taken))))
    assert heard[0] < 8 and len(taken) == 20


def test_stream(model):
    samples = speak([1, 2, 3, 4])
    partials = list(model.stream([samples[:16000], (samples[16000:] * 32767).astype(np.int16)]))
    assert len(partials) == 3 and partials[-1].open == "" and partials[-1].heard == len(samples) / 16000
    assert all(partial.latency > 0 for partial in partials[:2])


def test_saved_and_loaded_again(model, tmp_path):
    model.decode_conf.max_tokens = 5
    with torch.no_grad():
        model.network.projector.linear.weight.add_(0.5)
    path = model.save_pretrained(tmp_path / "saved")
    again = steermoe.SteerMoE.from_pretrained(tmp_path / "saved", prompt="write: ")
    assert path.name == "adapter.safetensors" and again.decode_conf == model.decode_conf and again.prompt == "write: "
    state = model.network.adapter_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.adapter_state().items())
    again.prompt = model.prompt
    assert again.transcribe(speak([1, 2])) == model.transcribe(speak([1, 2]))


def test_saved_is_a_package_by_the_names_that_it_was_trained_with(tiny_model, tiny_config, tmp_path):
    """Not by where the frozen models are on this disk; and with what the experiment says of itself."""
    where = {f"{role}_model": getattr(tiny_config, f"{role}_conf")["model"] for role in ("encoder", "llm")}
    tiny_config.encoder_conf["model"], tiny_config.llm_conf["model"] = "whisper-tiny.en", "SmolLM2-135M-Instruct"
    save_adapter(tmp_path / "exp/checkpoints/best.safetensors", tiny_model, tiny_config, 7, {"git": "abc"})
    (tmp_path / "exp/RESULTS.md").write_text("# exp\n\n- data: a corpus\n\n## Model\n")
    tiny_config.decode_conf.beam = 3
    tiny_config.save(tmp_path / "exp/config.yaml")  # edited after training: the verbs read it there, and so does this
    model = steermoe.SteerMoE.from_pretrained(tmp_path / "exp", **where)
    assert model.decode_conf.beam == 3
    config = read_metadata(model.save_pretrained(tmp_path / "saved"))[0]
    assert (config.encoder_conf["model"], config.llm_conf["model"]) == ("whisper-tiny.en", "SmolLM2-135M-Instruct")
    card = (tmp_path / "saved/README.md").read_text()
    assert "# saved: a SteerMoE adapter" in card and "- data: a corpus" in card and "| encoder | whisper-tiny.en | MIT |" in card


@pytest.mark.parametrize("samples", [np.zeros((2, 16000), np.float32), np.zeros(16000, np.int32)])
def test_samples_of_another_kind_are_refused(model, samples):
    with pytest.raises(UserError, match="is needed"):
        model.transcribe(samples)


HEAVY = {"torch", "torchaudio", "transformers", "huggingface_hub", "matplotlib", "scipy", "safetensors.torch", "pandas"}


@pytest.mark.parametrize("statement", ["import steermoe", "import steermoe; steermoe.SteerMoE", "import steermoe.bin.__main__"])
def test_importing_is_quick(statement):
    """Under 2 s, of this process's own time: what breaks it is an import of something HEAVY at the top of a file that is imported
    with the library, which is named then. It belongs into the function that needs it.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = f"import time; {statement}; print(time.process_time())"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, env=environment)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "steermoe" in imported and not imported & HEAVY
    assert float(done.stdout) < 2


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        steermoe.nothing
