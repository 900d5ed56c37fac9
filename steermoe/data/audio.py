"""Audio files to mono float32 at one sampling rate, with one clear message for every kind of broken file.

soundfile reads WAV, FLAC, OGG, Opus, MP3, NIST SPHERE, …; PyAV reads G.722 (`.g722`: 16 kHz, mono, 64 kbit/s, no header).
An entry of wav.scp may also be `file.ark:offset` (audio inside an archive, as Kaldi's wav-copy and ESPnet write it) or, where the
caller allows it, a command that ends in `|` and writes a WAV file to its standard output.
"""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator

import numpy as np
import soundfile

from steermoe.errors import UserError

G722_RATE = 16000
G722_BYTES_PER_SECOND = 8000
# Kaldi's extract-segments: a segment may end this much after its recording and is then cut there.
MAX_OVERSHOOT_S = 0.5
BLOCK_FRAMES = 1 << 20
# After a seek, MP3 and Opus decoders need some packets before their output is right again.
PREROLL_FRAMES = {"MP3": 16384, "OGG": 16384}
# A WAV file written to a pipe cannot know its length: ffmpeg writes 0xFFFFFFFF, sox 0x7FFFF000 or a little more, others 0.
STREAMED_FROM = 0x7FFFF000
# torchaudio's kernel has (new rate * old rate) / gcd^2 values; 44.1 kHz to 16 kHz has 70,000. Above this, swresample.
MAX_KERNEL = 20_000_000


def load_audio(
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    sample_rate: int | None = 16000,
    allow_pipes: bool = False,
) -> np.ndarray:
    """Reads a file, or [start, end) of it in seconds, as float32 (N,), channels averaged, full scale = 1.0.

    path: a file, `file.ark:offset`, or a command ending in `|` (only with allow_pipes). sample_rate: None is the file's own.
    Only the slice is read and resampled. A lossy format may overshoot 1.0 by a little.
    UserError names the file: missing, empty, truncated, zero-length, not audio, a segment outside, samples that are no numbers.
    """
    name = str(path)
    if _is_g722(name):
        samples, rate = _read_g722(name), G722_RATE
        first, stop = _frame_range(name, start, end, rate, len(samples))
        samples = samples[first:stop]
    else:
        with _open(name, allow_pipes) as audio:
            rate = audio.samplerate
            first, stop = _frame_range(name, start, end, rate, audio.frames)
            samples = _read_frames(audio, name, first, stop)
    if not len(samples):
        raise UserError(f"{name}: has no samples (zero-length audio); remove the utterance")
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: has samples that are NaN or infinite; write the file again or remove the utterance")
    return samples if sample_rate in (None, rate) else resample(samples, rate, sample_rate)


def load_blocks(path: str | Path, sample_rate: int = 16000) -> Iterator[np.ndarray]:
    """What `load_audio` reads of a whole file, in blocks of about a minute, so that hours take little memory. Errors as there."""
    name = str(path)
    if _is_g722(name):
        blocks, rate = _g722_blocks(name), G722_RATE
        yield from _checked(resample_blocks(blocks, rate, sample_rate), name)
        return
    with _open(name, allow_pipes=False) as audio:
        blocks = _frame_blocks(audio, name, 0, audio.frames)
        yield from _checked(resample_blocks(blocks, audio.samplerate, sample_rate), name)


def _checked(blocks: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """UserError if there are no samples, or any that are no numbers."""
    some = False
    for block in blocks:
        if not np.isfinite(block).all():
            raise UserError(f"{name}: has samples that are NaN or infinite; write the file again or remove the utterance")
        some = some or len(block) > 0
        yield block
    if not some:
        raise UserError(f"{name}: has no samples (zero-length audio); remove the utterance")


def resample_blocks(blocks: Iterator[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Whole seconds, with a second more on both sides for the filter: joined, they are the whole resampled at once."""
    if rate == sample_rate:
        yield from blocks
        return
    held, before = np.zeros(0, dtype=np.float32), 0  # the first `before` samples have been resampled already
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) // rate - 1) * rate
        if ready > before:
            samples = resample(held[: ready + rate], rate, sample_rate)
            yield samples[before // rate * sample_rate : ready // rate * sample_rate]
            held, before = held[ready - rate :], rate
    if len(held):
        yield resample(held, rate, sample_rate)[before // rate * sample_rate :]


def duration(path: str | Path, allow_pipes: bool = False) -> float:
    """Length in seconds, from the header where there is one. Errors as `load_audio`, except what only decoding can show."""
    name = str(path)
    if _is_g722(name):
        size = _file_size(name)
        return size / G722_BYTES_PER_SECOND
    with _open(name, allow_pipes) as audio:
        frames = audio.frames
        if frames >= 1 << 60:  # FLAC written to a pipe: the header does not know
            frames = sum(len(block) for block in _frame_blocks(audio, name, 0, frames))
        if frames <= 0:
            raise UserError(f"{name}: has no samples (zero-length audio); remove the utterance")
        return frames / audio.samplerate


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 (N,) at `rate` -> float32 (ceil(N * sample_rate / rate),), windowed sinc (torchaudio's default filter)."""
    gcd = math.gcd(rate, sample_rate)
    if (rate // gcd) * (sample_rate // gcd) > MAX_KERNEL:
        return _resample_odd_rate(samples, rate, sample_rate)
    import torch
    from torchaudio.functional import resample as sinc

    return sinc(torch.from_numpy(samples), rate, sample_rate).numpy()


def _resample_odd_rate(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Rates with no common factor, such as 44,101 Hz: FFmpeg's swresample interpolates its filter instead of tabulating it."""
    import av

    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    frames = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32)


def _is_g722(name: str) -> bool:
    return name.lower().endswith(".g722")


def _file_size(name: str) -> int:
    """Bytes in the file. UserError if it is missing or empty."""
    try:
        size = os.stat(name).st_size
    except OSError as error:
        raise UserError(f"{name}: no such audio file ({error.strerror}); correct its line in wav.scp (paths are relative to the "
                        "current directory), or remove that line and run utils/fix_data_dir.sh") from None
    if os.path.isdir(name):
        raise UserError(f"{name}: is a folder, not an audio file; correct its line in wav.scp")
    if size == 0:
        raise UserError(f"{name}: empty audio file (0 bytes); fetch or write it again, or remove the utterance")
    return size


def _read_g722(name: str) -> np.ndarray:
    """float32 (N,) at 16 kHz."""
    return np.concatenate([np.zeros(0, dtype=np.float32), *_g722_blocks(name)])


def _g722_blocks(name: str) -> Iterator[np.ndarray]:
    import av

    _file_size(name)
    try:
        with av.open(name, format="g722") as container:
            for frame in container.decode(audio=0):
                yield frame.to_ndarray().reshape(-1).astype(np.float32) / 32768.0
    except av.error.FFmpegError as error:
        raise UserError(f"{name}: cannot be decoded as G.722 ({error}); fetch it again or remove the utterance") from None


@contextmanager
def _open(name: str, allow_pipes: bool) -> Iterator[soundfile.SoundFile]:
    """Opens whatever wav.scp may name, after checking that the container is complete."""
    source: str | IO[bytes] = name
    if name.rstrip().endswith("|"):
        source = _run_pipe(name, allow_pipes)
    elif (match := re.fullmatch(r"(.+):(\d+)", name)) and not os.path.exists(name) and os.path.isfile(match.group(1)):
        source = _read_from_ark(match.group(1), int(match.group(2)))
    else:
        size = _file_size(name)
        with open(name, "rb") as stream:
            check_complete(stream, name, size)
    try:
        audio = soundfile.SoundFile(source)
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise UserError(f"{name}: cannot be read as audio ({reason}): damaged, truncated or of an unknown format; "
                        "convert it to WAV or FLAC, or remove the utterance") from None
    with audio:
        _check_log(audio, name)
        yield audio


def _check_log(audio: soundfile.SoundFile, name: str) -> None:
    """UserError for a cut file of the rarer formats without compression: libsndfile notes `Size : 100 (should be 50)`."""
    if audio.format in ("AIFF", "AU", "CAF", "RF64", "SVX", "W64"):
        for promised, found in re.findall(r": (\d+) \(should be (\d+)\)", audio.extra_info):
            if int(found) < int(promised) < STREAMED_FROM:
                raise UserError(f"{name}: truncated: the header promises {promised} bytes and the file has {found}; "
                                "fetch or write it again, or remove the utterance")


def _run_pipe(name: str, allow_pipes: bool) -> IO[bytes]:
    """The standard output of `command |`, with the WAV header's length corrected."""
    if not allow_pipes:
        raise UserError(f"{name}: is a command; it runs only with --allow-pipes true. Read it first, it can do anything")
    done = subprocess.run(name.rstrip()[:-1], shell=True, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{name}: the command ended with status {done.returncode} ({last}); run it by hand to see why")
    if not done.stdout:
        raise UserError(f"{name}: the command wrote nothing; run it by hand to see why")
    return _complete_stream(bytearray(done.stdout), name)


def _read_from_ark(path: str, offset: int) -> IO[bytes]:
    """Audio at an offset of an archive: a WAV or FLAC file as it is (Kaldi), or kaldiio's `AUDIO` + length + file."""
    name = f"{path}:{offset}"
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(12)
        if head[:4] == b"RIFF":
            length = int.from_bytes(head[4:8], "little") + 8
        elif head[:5] == b"AUDIO":
            width = head[5]
            stream.seek(offset + 6)
            length = int.from_bytes(stream.read(width), "little")
            offset += 6 + width
        elif head[:4] == b"fLaC":
            length = -1
        else:
            raise UserError(f"{name}: no audio begins here (found {head[:8]!r}); make the archive again")
        stream.seek(offset)
        return _complete_stream(bytearray(stream.read(length)), name)


def _complete_stream(content: bytearray, name: str) -> IO[bytes]:
    """Checks audio that is in memory. A WAV header that does not know its length gets it."""
    data = _find_wav_data(io.BytesIO(content), name, len(content))
    if data is not None and not 0 < data[1] < STREAMED_FROM:
        length = len(content) - data[0]
        content[data[0] - 4 : data[0]] = length.to_bytes(4, "little")
        content[4:8] = (len(content) - 8).to_bytes(4, "little")
    stream = io.BytesIO(content)
    check_complete(stream, name, len(content))
    stream.seek(0)
    return stream


def _find_wav_data(stream: IO[bytes], name: str, size: int) -> tuple[int, int] | None:
    """(offset of the samples, their length in bytes as the header promises) of a RIFF WAVE file; None for anything else."""
    stream.seek(0)
    head = stream.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    position = 12
    while position + 8 <= size:
        stream.seek(position)
        chunk = stream.read(8)
        length = int.from_bytes(chunk[4:8], "little")
        position += 8
        if chunk[:4] == b"data":
            return position, length
        position += length + length % 2
    raise UserError(f"{name}: truncated before its samples begin; fetch or write it again, or remove the utterance")


def check_complete(stream: IO[bytes], name: str, size: int) -> None:
    """UserError for a WAV or Ogg file that is cut off: libsndfile silently returns what is left of those.

    A cut FLAC or MP3 file shows itself when it is decoded.
    """
    data = _find_wav_data(stream, name, size)
    if data is not None:
        start, length = data
        if length < STREAMED_FROM and start + length > size:
            raise UserError(
                f"{name}: truncated: the header promises {length} bytes of samples and the file has {max(0, size - start)}; "
                "fetch or write it again, or remove the utterance"
            )
        return
    stream.seek(0)
    if stream.read(4) != b"OggS":
        return
    stream.seek(max(0, size - (1 << 17)))  # a page has at most 65,307 bytes
    tail = stream.read()
    page = tail.rfind(b"OggS")
    while page > 0 and page + 27 <= len(tail) and tail[page + 4] != 0:  # the pattern by chance inside a packet
        page = tail.rfind(b"OggS", 0, page)
    segments = tail[page + 26] if page >= 0 and page + 27 <= len(tail) else None
    if segments is None or page + 27 + segments + sum(tail[page + 27 : page + 27 + segments]) > len(tail) or (
        page + 27 + segments > len(tail)
    ):
        raise UserError(f"{name}: truncated: the last Ogg page is incomplete; fetch or write it again, or remove the utterance")


def _frame_range(name: str, start: float | None, end: float | None, rate: int, frames: int) -> tuple[int, int]:
    """Seconds -> frames [first, stop). UserError for a segment that is empty or outside the recording."""
    first = 0 if start is None else round(start * rate)
    stop = frames if end is None else round(end * rate)
    if first < 0 or (end is not None and stop <= first):
        raise UserError(f"{name}: a segment from {start} s to {end} s is empty or begins before 0; correct the segments file")
    if start is not None and first >= frames or stop > frames + MAX_OVERSHOOT_S * rate:
        raise UserError(f"{name}: the segment {start or 0} s to {end} s is outside of the audio ({frames / rate:.3f} s); "
                        "correct the segments file")
    return first, min(stop, frames)


def _read_frames(audio: soundfile.SoundFile, name: str, first: int, stop: int) -> np.ndarray:
    """Frames [first, stop), channels averaged."""
    preroll = min(first, PREROLL_FRAMES.get(audio.format, 0))
    blocks = list(_frame_blocks(audio, name, first - preroll, stop))
    return np.concatenate(blocks)[preroll:] if blocks else np.zeros(0, dtype=np.float32)


def _frame_blocks(audio: soundfile.SoundFile, name: str, position: int, stop: int) -> Iterator[np.ndarray]:
    """Frames [position, stop), channels averaged. Block by block, so that a wrong header cannot ask for all memory."""
    unknown = stop >= 1 << 60
    try:
        if position:
            audio.seek(position)
        while position < stop:
            block = audio.read(min(BLOCK_FRAMES, stop - position), dtype="float32", always_2d=True)
            if not len(block):
                break
            position += len(block)
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise UserError(f"{name}: damaged or truncated after {position / audio.samplerate:.2f} s ({reason}); "
                        "fetch or write it again, or remove the utterance") from None
    if position < stop and not unknown:
        raise UserError(f"{name}: truncated: the header promises {stop / audio.samplerate:.2f} s and only "
                        f"{position / audio.samplerate:.2f} s can be read; fetch or write it again, or remove the utterance")
