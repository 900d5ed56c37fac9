"""What the page draws, when words are said, and the page's files; in a browser: test_page_chromium.py."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from steermoe.api import SteerMoE
from steermoe.errors import UserError
from steermoe.serve.experts import hear
from steermoe.serve.words import word_times

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "steermoe" / "serve" / "page"


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

    feats = model.frontend(torch.from_numpy(samples))[None]
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
    syllables = np.abs(np.sin(np.arange(480000) / 16000 * 20)).astype(np.float32)  # steady noise is no speech
    speech = _noise(30.0) * syllables
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


@pytest.fixture()
def speller(tiny_config):
    """With CTC over bytes; a scored frame is four of the encoder's: 80 ms."""
    from steermoe.model import SteerMoE as Network

    tiny_config.projector = "token"
    tiny_config.projector_conf = {"units": "bytes", "frames": "linear", "frames_conf": {"kernel": 4}}
    return SteerMoE(Network.from_config(tiny_config).eval(), tiny_config)


def test_words_are_where_ctc_hears_their_letters(speller, monkeypatch):
    import torch

    projector = speller.network.projector
    units = projector.units

    def letters_at(hidden_1td, lens_1, final_norm):
        scores_1uc = torch.zeros(1, 26, len(units.bytes) + 1)
        scores_1uc[..., 0] = 10  # the blank
        for frame, letter in {2: "h", 4: "i", 10: " ", 12: "y", 13: "o", 16: "u"}.items():
            scores_1uc[0, frame, 1 + units.unit_of[ord(letter)]] = 20
        return scores_1uc, torch.tensor([26])

    monkeypatch.setattr(projector, "hear", letters_at)
    found = word_times(speller, _noise(2.0), "hi you")
    assert [word.text for word in found] == ["hi", "you"]
    times = [time for word in found for time in (word.start, word.end)]
    assert times == pytest.approx([0.16, 0.40, 0.96, 1.36], abs=0.01)
    monkeypatch.setattr(speller.decode_conf, "unheard", ",.")
    written = word_times(speller, _noise(2.0), "Hi, you.")  # case and marks are the LLM's
    assert [(word.text, word.start, word.end) for word in written] == [("Hi,", *found[0][:2]), ("you.", *found[1][:2])]


def test_words_of_any_script_come_in_order(speller):
    found = word_times(speller, _noise(4.0), "Größe, 你好 ok")
    assert [word.text for word in found] == ["Größe,", "你", "好", "ok"]
    assert all(0 <= word.start < word.end <= 4.0 for word in found)
    assert all(one.end <= other.start + 1e-9 for one, other in zip(found, found[1:]))


def test_no_word_times_without_a_text_a_fit_or_letters(speller, model):
    assert word_times(speller, _noise(1.0), "") == []
    assert word_times(speller, _noise(0.2), "far more than is said in so short a time") == []
    assert word_times(model, _noise(1.0), "a projector without CTC") == []


class _Markup(HTMLParser):
    """What is found in a page: every tag with its attributes, and the text within script and style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.inline, self.inside, self.labels = [], "", "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def markup() -> _Markup:
    return _Markup((PAGE / "index.html").read_text(encoding="utf-8"))


def test_the_page_holds_under_a_strict_policy(markup):
    """default-src 'self': no script or style within the page, no handler in an attribute, no address elsewhere."""
    assert not markup.inline
    for tag, attributes in markup.tags:
        assert tag != "style" and not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action"):
            target = attributes.get(name, "#")
            assert target.startswith("#") or (ROOT / "steermoe" / "serve" / target).is_file(), target
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"""\b(https?|wss?)://|["'(]//|@import|\beval\(|innerHTML|document\.write""", text), file.name
        assert len(text.splitlines()) < 400


def test_what_the_scripts_name_is_there(markup):
    ids = {attributes["id"] for _, attributes in markup.tags if "id" in attributes}
    for script in PAGE.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (PAGE / name).is_file(), name
        assert set(re.findall(r'\bget\("([^"]+)"\)', text)) <= ids
        for names in re.findall(r"\[([^\]]+)\]\.map\(get\)", text):
            assert set(re.findall(r'"([^"]+)"', names)) <= ids


def test_every_field_has_a_label(markup):
    named = {attributes["for"] for tag, attributes in markup.tags if tag == "label"}
    for tag, attributes in markup.tags:
        if tag in ("input", "textarea", "select"):
            assert attributes["id"] in named
        if tag in ("meter", "audio") or attributes.get("role") == "slider":
            assert attributes["aria-label"]
    assert dict(markup.tags)["html"]["lang"] == "en"
