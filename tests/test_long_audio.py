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
    model.decode_conf.ctc_weight = 1.0
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


def words_differ(first: str, second: str) -> float:
    """Percent."""
    return score({"all-1": first}, {"all-1": second}, "word", "english").rate


def joined(speech, pause_s: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    pause = rng.normal(0, 1e-3, round(16000 * pause_s)).astype(np.float32)
    return np.concatenate([part for samples, _ in speech.values() for part in (samples, pause)])


@pytest.fixture(scope="module")
def alone(model, speech):
    """Percent of words that are wrong when every utterance is decoded by itself, and what was heard."""
    heard = " ".join(model.transcribe([samples for samples, _ in speech.values()]))
    said = " ".join(text for _, text in speech.values())
    return words_differ(said, heard), heard, said


@pytest.mark.parametrize("pause_s", [0.6, 0.0])
def test_a_long_recording(model, speech, alone, pause_s):
    rate, heard, said = alone
    text = model.transcribe(joined(speech, pause_s))
    assert words_differ(heard, text) < max(rate / 2, 2.0) and words_differ(said, text) < rate + 2.0


def test_a_long_recording_in_which_nobody_pauses(model, speech, alone, monkeypatch):
    monkeypatch.setattr("steermoe.data.segment.find_pauses", lambda *_: [])
    rate, _, said = alone
    text = model.transcribe(joined(speech, 0.0))
    assert words_differ(said, text) < rate + 4.0


def test_a_stream(model, speech, alone):
    rate, _, said = alone
    samples = joined(speech, 0.6)
    partials = list(model.stream(samples[start : start + 32000] for start in range(0, len(samples), 32000)))
    assert any(partial.new or partial.open for partial in partials[:2])
    assert words_differ(said, "".join(partial.new for partial in partials)) < rate + 4.0
