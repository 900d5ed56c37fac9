"""What the page draws, and the page itself: its files, and in a real Chromium (slow)."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from steermoe.api import SteerMoE
from steermoe.errors import UserError
from steermoe.serve.experts import hear


def _noise(seconds: float, loud: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(round(seconds * 16000)) * loud).astype(np.float32)


def _array(text: str, columns: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(columns, -1)


@pytest.fixture()
def model(tiny_model, tiny_config):
    return SteerMoE(tiny_model, tiny_config)


def test_hear_gives_a_column_every_20_ms(model):
    heard = json.loads(json.dumps(hear(model, _noise(2.5))))
    assert (heard["seconds"], heard["columns"], heard["bands"], heard["message"]) == (2.5, 125, 80, "")
    assert _array(heard["spectrogram"], 125).shape == (125, 80)
    assert [layer["experts"] for layer in heard["layers"]] == [4, 4]
    assert [layer["alpha"] for layer in heard["layers"]] == [0.1, 0.1]
    for layer in heard["layers"]:
        assert (_array(layer["gates"], 125).sum(1, dtype=int) == 255).all()


def test_the_gates_are_those_of_the_frame(model):
    """Noise that becomes silence: every column shows what the router says of the frame at its time."""
    import torch

    samples = np.concatenate([_noise(1.0), np.zeros(16000, dtype=np.float32)])
    gates = []

    def steer(layer, hidden_1td):
        gates.append(model.network.steering.gates(layer, hidden_1td)[0])
        return model.network.steering(layer, hidden_1td)

    feats = model._frontend(torch.from_numpy(samples))[None]
    with torch.inference_mode():
        model.network.encoder(feats, torch.tensor([feats.shape[1]]), steer)
    heard = hear(model, samples)
    for layer, expected in zip(heard["layers"], gates):
        shares = _array(layer["gates"], 100) / 255
        assert np.abs(shares - expected[:100].numpy()).max() < 0.005


def test_loud_is_bright_and_silence_dark(model):
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)).astype(np.float32)
    picture = _array(hear(model, np.concatenate([tone, np.zeros(16000, dtype=np.float32)]))["spectrogram"], 100)
    assert picture[:45].max() == 255 and picture[55:].max() == 0
    band = int(picture[25].argmax())
    assert picture[25, band] > 200 and picture[25, 70] < 100  # the tone's own band, and one far above it
    assert 20 < band < 35  # 1 kHz of 80 mel bands up to 8 kHz


@pytest.mark.parametrize("samples", [1, 100, 400, 3000])
def test_very_short(model, samples):
    heard = hear(model, _noise(1.0)[:samples])
    assert heard["columns"] == max(round(samples / 320), 1)
    for layer in heard["layers"]:
        assert (_array(layer["gates"], heard["columns"]).sum(1, dtype=int) == 255).all()


def test_silence(model):
    heard = hear(model, np.zeros(32000, dtype=np.float32))
    assert not _array(heard["spectrogram"], 100).any()
    assert (_array(heard["layers"][0]["gates"], 100).sum(1, dtype=int) == 255).all()


def test_a_long_recording_has_a_thousand_columns_and_shows_what_was_left_out(model):
    model.config.data_conf.max_seconds = 10.0
    speech = _noise(30.0) * np.abs(np.sin(np.arange(480000) / 16000 * 20)).astype(np.float32)  # syllables: steady noise is no speech
    samples = np.concatenate([speech[: 12 * 16000], np.zeros(20 * 16000, dtype=np.float32), speech[12 * 16000 :]])
    heard = hear(model, samples)
    assert (heard["seconds"], heard["columns"]) == (50.0, 1000)
    sums = _array(heard["layers"][0]["gates"], 1000).sum(1, dtype=int)
    assert set(sums) == {0, 255}
    assert (sums[:235] == 255).all() and not sums[260:620].any() and (sums[650:] == 255).all()


def test_the_window_of_30_s_does_not_stretch_the_time(tiny_config):
    """`full30` pads to 30 s: a recording of 2 s shows its own 2 s."""
    from steermoe.model import SteerMoE as Network

    shares = {}
    for window in ("crop", "full30"):
        tiny_config.encoder_conf["window"] = window
        heard = hear(SteerMoE(Network.from_config(tiny_config).eval(), tiny_config), _noise(2.0))
        shares[window] = heard["layers"][0]["gates"]
    assert shares["crop"] == shares["full30"]


def test_without_steering_there_is_a_message(tiny_config):
    from steermoe.model import SteerMoE as Network

    tiny_config.steering, tiny_config.steering_conf = "none", {}
    heard = hear(SteerMoE(Network.from_config(tiny_config).eval(), tiny_config), _noise(0.5))
    assert heard["layers"] == [] and "steering: none" in heard["message"]
    assert _array(heard["spectrogram"], 25).any()


def test_no_samples(model):
    with pytest.raises(UserError, match="no samples"):
        hear(model, np.zeros(0, dtype=np.float32))
