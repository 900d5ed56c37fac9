"""What the page draws, and the page itself: its files, and in a real Chromium (slow)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
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


@contextlib.contextmanager
def _chromium(microphone: Path):
    """A real Chromium whose microphone hears a WAV file again and again."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium")
    fake = ["ui-for-media-stream", "device-for-media-stream", f"file-for-fake-audio-capture={microphone}"]
    with playwright.sync_playwright() as tools:
        options = [f"--use-{'' if '=' in one else 'fake-'}{one}" for one in fake]
        browser = tools.chromium.launch(executable_path=chromium, args=[*options, "--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def _visit(browser, address: str, **options):
    """The page in a window of its own. Nothing may go wrong in its scripts, and no request may go elsewhere."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, f"blob:{address}")) or wrong.append(request.url))
    page.on("websocket", lambda one: one.url.startswith(address.replace("http", "ws")) or wrong.append(one.url))
    page.on("console", lambda said: "Content Security Policy" in said.text and wrong.append(said.text))
    page.goto(address)
    yield page
    assert not wrong
    context.close()


def _wait(page, true: str, seconds: float = 120.0) -> None:
    """Until an expression is true; Playwright's own waiting evaluates strings, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(50)


SAYS = "document.getElementById('live').textContent.trim() !== ''"
PLAYS = "!player.paused && player.currentTime > 0"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> tuple[Path, str]:
    """A recording of 15 s whose text is known, in sentences."""
    import soundfile
    from serving import long_speech

    samples_n, text = long_speech([[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18], [19, 20, 21, 22, 23]])
    path = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    soundfile.write(path, samples_n, 16000)
    return path, text


@pytest.fixture(scope="module")
def browser(spoken):
    with _chromium(spoken[0]) as browser:
        yield browser


@pytest.fixture()
def serve(tiny_model, tiny_config, monkeypatch):
    """serve(keys=…) is the address of a server that understands the words of toneme and knows their times."""
    import toneme
    from serving import running

    from steermoe.serve.app import Server
    from steermoe.transcript import Segment

    def times(model, samples_n, text):
        return [Segment(0.46 * place, 0.46 * place + 0.4, word) for place, word in enumerate(text.split())]

    monkeypatch.setattr("steermoe.serve.words.word_times", times)
    tiny_config.data_conf.max_seconds = 4.0
    model = SteerMoE(tiny_model, tiny_config)
    monkeypatch.setattr(model, "_read", lambda samples, conf: [toneme.listen(samples_n) for samples_n in samples])
    with contextlib.ExitStack() as stack:

        def start(**settings) -> str:
            return f"http://127.0.0.1:{stack.enter_context(running(Server(model, **settings)))}/"

        yield start


@pytest.mark.slow
def test_chromium_records_and_shows_the_text_while_it_is_said(browser, serve, spoken):
    with _visit(browser, serve()) as page:
        page.click("#record")
        _wait(page, SAYS)
        _wait(page, "parseInt(clock.textContent.slice(2)) >= 4")
        assert page.locator("#level").evaluate("one => one.value") > 0
        page.click("#record")
        page.wait_for_selector("#experts:not([hidden])")
        heard = set(page.inner_text("#units").split()) & set(spoken[1].split())
        assert len(heard) >= 4  # a browser that is short of time drops some of its own microphone
        assert page.evaluate("player.duration") >= 4 and re.match(r"recording of 0:\d\d.wav", page.inner_text("#name"))


@pytest.mark.slow
def test_chromium_drops_a_file_clicks_a_word_and_hears_it_from_there(browser, serve, spoken):
    path, text = spoken
    with _visit(browser, serve()) as page:
        page.evaluate(
            """text => {
              const moved = new DataTransfer();
              const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
              moved.items.add(new File([bytes], "Größe 文.wav", { type: "audio/wav" }));
              for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
            }""",
            base64.b64encode(path.read_bytes()).decode(),
        )
        page.wait_for_selector("#experts:not([hidden])")
        assert page.inner_text("#name") == "Größe 文.wav"
        assert page.locator(".unit").all_inner_texts() == text.split()
        assert page.locator("#units p").count() > 2  # segments, each with its time
        word = page.locator(".unit").nth(8)
        start = float(word.get_attribute("data-start"))
        assert 3 < start < 6
        word.click()
        _wait(page, PLAYS)
        assert start <= page.evaluate("player.currentTime") < start + 5
        page.wait_for_selector(".unit.now[aria-current=true]")
        page.evaluate("player.pause()")
        page.locator(".time").first.press("Enter")
        _wait(page, f"{PLAYS} && player.currentTime < 3")
        page.evaluate("player.pause()")
        page.locator(".unit").first.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent") == text.split()[1]


@pytest.mark.slow
def test_chromium_shows_the_experts_and_keeps_a_conversation(browser, serve, spoken):
    with _visit(browser, serve()) as page:
        page.set_input_files("#file", spoken[0])
        page.wait_for_selector("#experts:not([hidden])")
        assert page.locator("canvas.strip").count() == 2
        for canvas in page.locator("canvas.plot").all():
            assert canvas.evaluate("one => new Set(one.getContext('2d').getImageData(0, 0, one.width, one.height).data).size") > 5
        slider = page.get_by_role("slider", name="Time")
        slider.press("Home")
        slider.press("ArrowDown")
        shares = r"0\.00 s .*layer 0: expert \d \d+ %(, expert \d \d+ %){3}"
        assert re.fullmatch(shares, slider.get_attribute("aria-valuetext"))
        slider.press("End")
        length = float(slider.get_attribute("aria-valuemax"))
        assert float(slider.get_attribute("aria-valuenow")) == pytest.approx(length, abs=0.01)
        strip = page.locator("canvas.strip").nth(1).bounding_box()
        page.mouse.move(strip["x"] + strip["width"] / 2, strip["y"] + 5)
        told = page.inner_text("#at")
        assert float(told.split()[0]) == pytest.approx(length / 2, abs=0.1) and "layer 1: expert" in told
        page.mouse.click(strip["x"] + strip["width"] / 2, strip["y"] + 5)
        _wait(page, f"{PLAYS} && player.currentTime >= {length / 2 - 0.2}")
        page.click("#legend button >> nth=2")
        assert page.get_attribute("#legend button >> nth=2", "aria-pressed") == "true"

        asked = []
        page.on("request", lambda one: one.url.endswith("completions") and asked.append(one.post_data_json["messages"]))
        for question in ("What is this?", "And that?"):
            page.fill("#words", question)
            page.press("#words", "Enter")
            _wait(page, "words.value === '' && !send.disabled")
        assert page.locator("#talk li").count() == 4
        assert [[turn["role"] for turn in messages] for messages in asked] == [["user"], ["user", "assistant", "user"]]
        assert [part["type"] for part in asked[0][0]["content"]] == ["input_audio", "text"]  # the sound goes with one question
        assert [part["type"] for part in asked[1][2]["content"]] == ["text"] and asked[1][0] == asked[0][0]
        page.click("#fresh")
        assert page.locator("#talk li").count() == 0


@pytest.mark.slow
def test_chromium_as_a_phone(browser, serve, spoken):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with _visit(browser, serve(), **phone, color_scheme="dark") as page:
        page.set_input_files("#file", spoken[0])
        page.wait_for_selector("#experts:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator(".unit").nth(5).tap()
        _wait(page, PLAYS)
        buttons = page.locator("button:visible, .button:visible")
        assert min(buttons.evaluate_all("all => all.map(one => one.offsetHeight)")) >= 28  # for a finger
        assert sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))) < 150


@pytest.mark.slow
def test_chromium_asks_for_the_key_and_shows_errors(browser, serve, spoken):
    with _visit(browser, serve(keys=["open-sesame"])) as page:
        page.wait_for_selector("#access:not([hidden])")
        for key in ("wrong", "open-sesame"):
            page.fill("#key", key)
            with page.expect_response("**/v1/models"):
                page.press("#key", "Enter")
        _wait(page, "model.textContent === 'steermoe'")
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        assert not page.locator("#error").is_visible() and not page.locator("#access").is_visible()
        page.set_input_files("#file", {"name": "no.wav", "mimeType": "audio/wav", "buffer": b"no audio at all"})
        page.wait_for_selector("#error:not([hidden])")
        assert re.fullmatch(r"[A-Z][^\n]*[.!?]", page.inner_text("#error"))
        page.click("#record")  # the key goes with the live connection too
        _wait(page, SAYS)
        page.click("#record")
        page.wait_for_selector(".unit")
        assert not page.locator("#error").is_visible()


@pytest.mark.slow
def test_chromium_hears_real_speech_with_the_adapter_that_comes_with_the_code(real_models, shared_data, tmp_path):
    """14 s of knitting instructions, by microphone. CTC alone reads, so that a slow machine keeps up."""
    import soundfile
    from serving import until

    samples, rate = soundfile.read(shared_data / "LibriSpeech" / "test-clean" / "1737" / "146161" / "1737-146161-0000.flac")
    soundfile.write(tmp_path / "spoken.wav", samples, rate)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quick = ["--decode-conf.ctc-weight", "1", "--decode-conf.beam", "1", "--timeout", "1000"]
    command = [sys.executable, "-m", "steermoe.bin.serve", "--port", str(port), *quick]
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    address = f"http://127.0.0.1:{port}/"

    def there() -> bool:
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}health", timeout=10).close()
            return True
        return False

    try:
        until(there, 600)
        with _chromium(tmp_path / "spoken.wav") as browser, _visit(browser, address) as page:
            page.set_default_timeout(600_000)
            page.click("#record")
            _wait(page, "parseInt(clock.textContent.slice(2)) >= 12")
            _wait(page, SAYS, 600)
            page.click("#record")
            page.wait_for_selector("#experts:not([hidden])")
            words = page.locator(".unit").all_inner_texts()
            assert len({"two", "three", "together", "make", "one", "second"} & set(words)) >= 3
            assert page.locator("canvas.strip").count() == 4
            page.locator(".unit").nth(3).click()
            _wait(page, PLAYS)
    finally:
        server.terminate()
        server.wait(60)
