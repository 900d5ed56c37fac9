"""Real speech through the adapter that comes with the code: long recordings and streams say what single utterances say."""

from __future__ import annotations

import numpy as np
import pytest

from steermoe import SteerMoE
from steermoe.data.audio import load_audio
from steermoe.pretrained import FOLDER
from steermoe.score import score

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(real_models):
    if not FOLDER.is_dir():
        pytest.skip("no adapter comes with this copy of the code")
    model = SteerMoE.from_pretrained()
    model.decode_conf.ctc_weight = 1.0  # as fast as a stream needs it, where every chunk is read again
    return model


@pytest.fixture(scope="module")
def speech(shared_data):
    """The first six utterances of each of four speakers, and what is said."""
    utterances = {}
    for file in sorted((shared_data / "LibriSpeech" / "test-clean").glob("*/*/*.trans.txt")):
        for line in file.read_text().splitlines()[:6]:
            utt, _, text = line.partition(" ")
            utterances[utt] = (load_audio(file.with_name(f"{utt}.flac")), text)
    return utterances


def compare(first: str, second: str):
    return score({"all-1": first}, {"all-1": second}, "word", "english")


def joined(speech, pause_s: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    pause = rng.normal(0, 1e-3, round(16000 * pause_s)).astype(np.float32)
    return np.concatenate([part for samples, _ in speech.values() for part in (samples, pause)])


@pytest.fixture(scope="module")
def alone(model, speech):
    """What was said, and how that differs from what is heard when every utterance is decoded by itself."""
    said = " ".join(text for _, text in speech.values())
    return said, compare(said, " ".join(model.transcribe([samples for samples, _ in speech.values()])))


@pytest.mark.parametrize("pause_s", [0.6, 0.0])
def test_a_long_recording(model, speech, alone, pause_s):
    """Words are heard a little differently among other ones. None are lost, and none come twice."""
    said, by_itself = alone
    found = compare(said, model.transcribe(joined(speech, pause_s)))
    few = 0.01 * found.n  # words; fewer than an utterance or a second's overlap has
    assert found.d < by_itself.d + few and found.i < by_itself.i + few and found.rate < by_itself.rate + 2.0


def test_a_long_recording_in_which_nobody_pauses(model, speech, alone, monkeypatch):
    monkeypatch.setattr("steermoe.data.segment.find_pauses", lambda *_: [])
    said, by_itself = alone
    assert compare(said, model.transcribe(joined(speech, 0.0))).rate < by_itself.rate + 4.0


def test_a_stream(model, speech, alone):
    said, by_itself = alone
    samples = joined(speech, 0.6)
    partials = list(model.stream(samples[start : start + 32000] for start in range(0, len(samples), 32000)))
    assert any(partial.new or partial.open for partial in partials[:2])
    assert compare(said, "".join(partial.new for partial in partials)).rate < by_itself.rate + 4.0
