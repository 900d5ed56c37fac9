"""Audio: every format and layout gives the same samples, and every broken file one message that names it."""

from __future__ import annotations

import io
import struct

import kaldiio
import numpy as np
import pytest
import soundfile

from steermoe.data.audio import duration, load_audio, load_blocks, resample
from steermoe.errors import UserError

FORMATS = [
    *(("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    *(("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16")),
]
LOSSLESS = ("PCM_16", "PCM_24", "FLOAT")


def tone(seconds: float = 1.0, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write(path, samples, rate=16000, form="WAV", subtype="PCM_16"):
    soundfile.write(path, samples, rate, format=form, subtype=subtype)
    return path


@pytest.mark.parametrize("form, subtype", FORMATS)
def test_formats_whole_and_sliced(tmp_path, form, subtype):
    samples = tone(3.0)
    path = write(tmp_path / "a", samples, form=form, subtype=subtype)
    read = load_audio(path)
    assert read.dtype == np.float32 and read.flags.c_contiguous and abs(read).max() < (0.51 if subtype in LOSSLESS else 1.2)
    assert abs(duration(path) - 3.0) < 0.1 and abs(len(read) - duration(path) * 16000) < 1
    if subtype in LOSSLESS:
        assert np.abs(read - samples).max() < 1e-4
    part = load_audio(path, 1.0, 1.5)
    assert len(part) == 8000 and np.abs(part - read[16000:24000]).max() < 1e-3
    assert len(load_audio(path, 2.5)) == len(read) - 40000


def test_channels_are_averaged_and_rates_resampled(tmp_path):
    left, right = tone(1.0, 44100), np.zeros(44100, dtype=np.float32)
    path = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 44100, subtype="FLOAT")
    read = load_audio(path)
    assert len(read) == 16000
    assert np.abs(read[200:-200] - tone(1.0)[200:-200] / 2).max() < 2e-3
    assert np.allclose(load_audio(path, sample_rate=44100), left / 2)
    assert np.array_equal(load_audio(path, 0.2, 0.4), load_audio(path, 0.2, 0.4))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 48000, 44101])
def test_resample_keeps_the_tone(rate):
    read = resample(tone(1.0, rate), rate, 16000)
    assert abs(len(read) - 16000) <= 16
    assert np.abs(read[500:15000] - tone(1.0)[500:15000]).max() < 0.02


def g722_bytes() -> bytes:
    """One second of G.722, encoded by PyAV."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((tone(1.0)[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def test_g722(tmp_path):
    path = tmp_path / "prompt.g722"
    path.write_bytes(g722_bytes())
    read = load_audio(path)
    assert abs(len(read) - 16000) < 400 and abs(duration(path) - len(read) / 16000) < 0.03
    spectrum = np.abs(np.fft.rfft(read))
    assert abs(np.argmax(spectrum) * 16000 / len(read) - 440) < 5 and 0.3 < abs(read).max() < 0.7
    assert np.array_equal(load_audio(path, 0.25, 0.5), read[4000:8000])
    assert len(load_audio(path, sample_rate=8000)) == len(read) // 2
    path.write_bytes(b"")
    with pytest.raises(UserError, match="prompt.g722: empty audio file"):
        load_audio(path)


@pytest.mark.parametrize("form, subtype", FORMATS)
def test_truncated(tmp_path, form, subtype):
    path = write(tmp_path / "a", np.random.default_rng(0).uniform(-0.5, 0.5, 48000), form=form, subtype=subtype)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - len(whole) // 10, 30, 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="a: .*(truncated|cannot be read as audio)"):
            load_audio(path)


def test_broken_files_are_named(tmp_path):
    def refused(path, message, *arguments):
        for reader in (load_audio, duration) if not arguments else (load_audio,):
            with pytest.raises(UserError, match=message) as error:
                reader(path, *arguments)
            assert str(path) in str(error.value)

    refused(tmp_path / "none.wav", "no such audio file")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.wav").write_bytes(b"")
    refused(tmp_path / "empty.wav", "empty audio file")
    refused(write(tmp_path / "zero.wav", np.zeros(0)), "zero-length audio")
    refused(write(tmp_path / "zero.flac", np.zeros(0), form="FLAC"), "zero-length audio|empty audio file")
    (tmp_path / "text.wav").write_text("this is no audio " * 100)
    refused(tmp_path / "text.wav", "cannot be read as audio")
    nan = tone()
    nan[100] = np.nan
    path = write(tmp_path / "nan.wav", nan, subtype="FLOAT")
    refused(path, "NaN", None, None)
    path = write(tmp_path / "one.wav", tone())
    refused(path, "is outside of the audio", 1.0)
    refused(path, "is outside of the audio", 0.5, 1.6)
    refused(path, "is empty or begins before 0", 0.5, 0.5)
    refused(path, "is empty or begins before 0", -0.5, 0.5)
    assert len(load_audio(path, 0.5, 1.4)) == 8000  # Kaldi lets a segment end half a second late


def test_wav_that_does_not_know_its_length(tmp_path):
    """As written to a pipe: ffmpeg's 0xFFFFFFFF, sox's 0x7FFFFFFF."""
    whole = bytearray(write(tmp_path / "a.wav", tone()).read_bytes())
    at = whole.index(b"data") + 4
    for length in (0xFFFFFFFF, 0x7FFFFFFF):
        whole[at : at + 4] = struct.pack("<I", length)
        (tmp_path / "b.wav").write_bytes(whole)
        assert len(load_audio(tmp_path / "b.wav")) == 16000
    for length in (0xFFFFFFFF, 0x7FFFFFFF, 0):
        whole[at : at + 4] = struct.pack("<I", length)
        (tmp_path / "b.wav").write_bytes(whole)
        assert len(load_audio(f"cat {tmp_path / 'b.wav'} |", allow_pipes=True)) == 16000


def test_pipes(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    assert np.array_equal(load_audio(f"cat {path} |", 0.1, 0.2, allow_pipes=True), load_audio(path, 0.1, 0.2))
    assert duration(f"cat {path} |", allow_pipes=True) == 1.0
    marker = tmp_path / "ran"
    with pytest.raises(UserError, match="--allow-pipes true"):
        load_audio(f"touch {marker} |")
    assert not marker.exists()
    for command, message in (("exit 3 |", "status 3"), ("true |", "wrote nothing"), (f"head -c 5000 {path} |", "truncated")):
        with pytest.raises(UserError, match=message):
            load_audio(command, allow_pipes=True)


def test_audio_inside_an_ark(tmp_path):
    """ESPnet's and Kaldi's wav.ark: a WAV or FLAC file at an offset."""
    samples = (tone() * 32767).astype(np.int16)
    kaldiio.save_ark(str(tmp_path / "w.ark"), {"a": (16000, samples), "b": (16000, samples[:8000])}, scp=str(tmp_path / "w.scp"))
    places = [line.split()[1] for line in (tmp_path / "w.scp").read_text().splitlines()]
    assert [len(load_audio(place)) for place in places] == [16000, 8000]
    assert np.abs(load_audio(places[0]) - tone()).max() < 1e-3 and duration(places[1]) == 0.5
    flac = {"write_function": "soundfile", "write_kwargs": {"format": "flac"}}
    kaldiio.save_ark(str(tmp_path / "f.ark"), {"a": (16000, samples)}, scp=str(tmp_path / "f.scp"), **flac)
    assert len(load_audio((tmp_path / "f.scp").read_text().split()[1])) == 16000
    with pytest.raises(UserError, match="no audio begins here"):
        load_audio(f"{tmp_path / 'w.ark'}:1")
    content = (tmp_path / "w.ark").read_bytes()
    (tmp_path / "w.ark").write_bytes(content[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_audio(places[1])


def test_a_header_that_promises_too_much_needs_no_memory(tmp_path):
    path = write(tmp_path / "a.flac", tone(), form="FLAC")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the 36-bit number of samples in STREAMINFO
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.flac: .*truncated"):
        load_audio(path)


def test_real_speech(shared_data):
    path = next((shared_data / "LibriSpeech" / "test-clean").rglob("*.flac"))
    read = load_audio(path)
    assert len(read) == round(duration(path) * 16000) and 0.01 < abs(read).max() <= 1
    opus = next((shared_data / "LibriSpeech").rglob("*.opus"), None)
    if opus is not None:
        assert abs(len(load_audio(opus)) / 16000 - duration(opus)) < 0.01


@pytest.mark.parametrize("rate", [16000, 8000, 44100, 44101])
def test_blocks_are_the_whole(tmp_path, rate, monkeypatch):
    """Small blocks, so that a short file has many."""
    monkeypatch.setattr("steermoe.data.audio.BLOCK_FRAMES", 7001)
    path = write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (round(3.3 * rate), 2)), rate)
    blocks = list(load_blocks(path))
    whole = load_audio(path)
    assert len(blocks) > 1 and sum(map(len, blocks)) == len(whole)
    if rate != 44101:  # an interpolated filter begins its steps anew in every block
        assert np.abs(np.concatenate(blocks) - whole).max() < 1e-5


def test_blocks_refuse_what_load_audio_refuses(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    whole = write(tmp_path / "a.flac", samples, form="FLAC").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    samples[100] = np.nan
    paths = [tmp_path / "a.flac", write(tmp_path / "nan.wav", samples, subtype="FLOAT"), write(tmp_path / "none.wav", np.zeros(0))]
    for path, message in zip(paths, ("truncated|damaged", "NaN", "zero-length")):
        with pytest.raises(UserError, match=f"{path.name}: .*({message})"):
            list(load_blocks(path))
    (tmp_path / "a.g722").write_bytes(g722_bytes())
    assert np.array_equal(np.concatenate(list(load_blocks(tmp_path / "a.g722"))), load_audio(tmp_path / "a.g722"))
