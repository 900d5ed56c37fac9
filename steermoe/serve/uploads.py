"""Audio that strangers send, as bytes: no name, path or address in it is ever opened, and no header is believed.

soundfile reads most formats. What browsers and phones record (WebM, MP4) is read by FFmpeg, which is told by the first bytes
which of these two it is: left to itself it would take a playlist for audio, and open what the playlist names.
"""

from __future__ import annotations

import io
from typing import IO, Iterator

import numpy as np
import soundfile

from steermoe.data.audio import check_complete, resample_blocks
from steermoe.data.segment import SAMPLE_RATE, Piece, cut_at_pauses
from steermoe.errors import UserError
from steermoe.serve.limits import ApiError

RATES = (4000, 384000)  # Hz
CHANNELS = 16
BLOCK = 1 << 16  # frames
NAME = "the audio"


def read_pieces(stream: IO[bytes], longest: float, limit: float) -> tuple[float, list[Piece]]:
    """An upload's length in seconds, and its pieces of at most `limit` seconds. ApiError as by `read_audio`."""
    samples_n = read_audio(stream, longest)
    return len(samples_n) / SAMPLE_RATE, list(cut_at_pauses(iter([samples_n]), limit))


def read_audio(stream: IO[bytes], longest: float) -> np.ndarray:
    """float32 (N,) at 16 kHz, channels averaged. longest: seconds.

    ApiError 400 for what is not audio, or damaged, or longer; the file, `longest` and a block are all that is held in memory.
    """
    blocks, count = [], 0
    try:
        for block in _blocks(stream, longest):
            if not np.isfinite(block).all():
                raise ApiError(400, f"{NAME} has samples that are NaN or infinite", "file", "invalid_audio")
            blocks.append(block)
            count += len(block)
            if count > longest * SAMPLE_RATE:
                _too_long(longest)
    except UserError as error:
        raise ApiError(400, str(error).partition("; ")[0], "file", "invalid_audio") from None
    if not count:
        raise ApiError(400, f"{NAME} has no samples", "file", "invalid_audio")
    return np.concatenate(blocks)


def _blocks(stream: IO[bytes], longest: float) -> Iterator[np.ndarray]:
    content = stream.read()
    stream, head = io.BytesIO(content), content[:12]
    if head[:4] == b"\x1aE\xdf\xa3":
        return _by_ffmpeg(stream, "matroska")
    if head[4:8] == b"ftyp":
        return _by_ffmpeg(stream, "mp4")
    check_complete(stream, NAME, len(content))
    stream.seek(0)
    return _by_soundfile(stream, longest)


def _by_soundfile(stream: IO[bytes], longest: float) -> Iterator[np.ndarray]:
    try:
        with soundfile.SoundFile(stream) as audio:
            _check_form(audio.samplerate, audio.channels)
            if longest < audio.frames / audio.samplerate < 1 << 40:  # more: FLAC that does not know its length
                _too_long(longest)
            yield from resample_blocks(_frames(audio), audio.samplerate, SAMPLE_RATE)
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise UserError(f"{NAME} cannot be read ({reason}): damaged, or of an unknown format") from None


def _frames(audio: soundfile.SoundFile) -> Iterator[np.ndarray]:
    while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
        yield block.mean(axis=1, dtype=np.float32)


def _by_ffmpeg(stream: IO[bytes], form: str) -> Iterator[np.ndarray]:
    import av

    try:
        with av.open(stream, format=form) as container:
            if not container.streams.audio:
                raise UserError(f"{NAME}: the file has no audio in it")
            codec = container.streams.audio[0].codec_context
            _check_form(codec.sample_rate, codec.channels)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(audio=0):
                yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
            yield from (part.to_ndarray()[0] for part in resampler.resample(None))
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{NAME} cannot be read ({reason}): damaged, or in a coding that is not known") from None


def _check_form(rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{NAME} has {rate} samples a second, and {RATES[0]} to {RATES[1]} are read")
    if channels > CHANNELS:
        raise UserError(f"{NAME} has {channels} channels, and {CHANNELS} are read at most")


def _too_long(longest: float) -> None:
    raise ApiError(400, f"{NAME} is longer than {longest:g} s, which is this server's limit", "file", "audio_too_long")
