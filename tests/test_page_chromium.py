"""The page in a real Chromium (slow): the microphone, a dropped file, playing, the experts, questions, a phone, the key."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from steermoe.api import SteerMoE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tools():
    """Playwright, of which there can be only one at a time in a thread."""
    with pytest.importorskip("playwright.sync_api").sync_playwright() as tools:
        yield tools


@contextlib.contextmanager
def _chromium(tools, microphone: Path):
    """A real Chromium whose microphone hears a WAV file again and again."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium")
    fake = ["ui-for-media-stream", "device-for-media-stream", f"file-for-fake-audio-capture={microphone}"]
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
def browser(tools, spoken):
    with _chromium(tools, spoken[0]) as browser:
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
    monkeypatch.setattr(model, "_read", lambda samples, conf, heard=None: [toneme.listen(samples_n) for samples_n in samples])
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
def test_chromium_without_steering_or_times_of_words(browser, serve, spoken, monkeypatch):
    """An adapter without experts: its message. Without word times a segment is what is clicked."""
    nothing = {"seconds": 15.0, "columns": 1, "bands": 1, "spectrogram": "AA==", "layers": [], "message": "There are no experts."}
    monkeypatch.setattr("steermoe.serve.words.word_times", lambda *_: [])
    with _visit(browser, serve()) as page:
        page.route("**/v1/steermoe/experts", lambda route: route.fulfill(json=nothing))
        page.set_input_files("#file", spoken[0])
        page.wait_for_selector("#experts:not([hidden])")
        assert "There are no experts." in page.inner_text("#at") and not page.locator("#legend").is_visible()
        segments = page.locator(".unit").all_inner_texts()
        assert 2 < len(segments) < 10 and " ".join(segments) == spoken[1]
        page.locator(".unit").nth(1).click()
        _wait(page, PLAYS)
        words = [{"word": word, "start": place, "end": place + 1} for place, word in enumerate(["Größe", "你", "no", "好"])]
        found = page.evaluate("words => import('/page/text.js').then(text => text.placeWords('Größe 你好!', words))", words)
        placed = [(part["text"], part.get("start")) for part in found]
        assert placed == [("Größe", 0), (" ", None), ("你", 1), ("好", 3), ("!", None)]


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
def test_chromium_hears_real_speech_with_the_adapter_that_comes_with_the_code(tools, real_models, shared_data, tmp_path):
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
        with _chromium(tools, tmp_path / "spoken.wav") as browser, _visit(browser, address) as page:
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
