"""OpenAI's form of /v1/audio/transcriptions: what is asked, and the answer's formats."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import IO, AsyncIterator, Sequence

from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response

from steermoe.serve.limits import ApiError
from steermoe.transcript import Segment, Transcript, format_transcript

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


@dataclass
class Asked:
    """file: the upload. words: whether their times are wanted. times: whether a stream's end is to have the times of verbose_json, which
    OpenAI's has not: where the client names timestamp_granularities. language: what the client says it is; the model does not ask.
    """

    file: IO[bytes]
    form: str
    stream: bool
    words: bool
    times: bool
    language: str


def read_form(form: FormData) -> Asked:
    """What a model of this kind has no use for (prompt, temperature, …) is taken and left. ApiError 400 for wrong values."""
    file = upload(form)
    fmt = form.get("response_format") or "json"
    if fmt not in FORMATS:
        raise ApiError(400, f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    stream = form.get("stream") or "false"
    if stream not in ("true", "false", "True", "False", "1", "0"):
        raise ApiError(400, "stream must be true or false", "stream")
    streams = stream in ("true", "True", "1")
    if streams and fmt not in ("json", "text"):
        raise ApiError(400, f"a stream is of response_format json or text, not {fmt}", "response_format")
    wanted = [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]
    if any(kind not in ("segment", "word") for kind in wanted):
        raise ApiError(400, "timestamp_granularities are segment and word", "timestamp_granularities")
    language = form.get("language") or ""
    if not isinstance(language, str) or len(language) > 32:
        raise ApiError(400, "language must be a language's name or code", "language")
    times = bool(wanted) and (streams or fmt == "verbose_json")
    return Asked(file, fmt, streams, times and "word" in wanted, times, language)


def upload(form: FormData) -> IO[bytes]:
    """The field `file`, as bytes; the name that the client gives it is not used."""
    files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise ApiError(400, "one audio file is needed: the field `file` of a multipart/form-data request", "file")
    return files[0].file


async def settled(
    pieces: Sequence[tuple[float, float, bool]], results: AsyncIterator[tuple[str, list[Segment]]], words: list[Segment]
) -> AsyncIterator[Transcript]:
    """A transcript after every piece; the last is whole. Of the others, only what the next piece cannot change is in it.

    pieces: start and end in seconds, and whether the piece begins with the end of the one before it. words: gets theirs.
    """
    transcript, number = Transcript(), 0
    async for text, heard in results:
        start, end, overlaps = pieces[number]
        middle = (start + pieces[number - 1][1]) / 2 if overlaps else start  # of what both pieces hear
        transcript.add(start, end, text, overlaps)
        words[:] = [word for word in words if word.start < middle or not overlaps]
        words += [Segment(start + word.start, start + word.end, word.text) for word in heard if start + word.start >= middle]
        number += 1
        open_ = number < len(pieces) and pieces[number][2]
        yield Transcript(transcript.segments[:-1] if open_ else transcript.segments)


async def last(parts: AsyncIterator[Transcript]) -> Transcript:
    transcript = Transcript()
    async for transcript in parts:
        pass
    return transcript


async def events(parts: AsyncIterator[Transcript], words: list[Segment], seconds: float, asked: Asked) -> AsyncIterator[dict]:
    """OpenAI's transcript.text.delta for every stretch of text that is settled, and transcript.text.done."""
    said, transcript = "", Transcript()
    async for transcript in parts:
        new, said = transcript.text[len(said) :], transcript.text
        if new:
            yield {"type": "transcript.text.delta", "delta": new}
    times = verbose(transcript, words, seconds, asked) if asked.times else {}
    yield times | {"type": "transcript.text.done", "text": said, "usage": usage(seconds)}


def answer(transcript: Transcript, words: list[Segment], seconds: float, asked: Asked) -> Response:
    """The response in the format that was asked for."""
    if asked.form == "json":
        return JSONResponse({"text": transcript.text, "usage": usage(seconds)})
    if asked.form == "verbose_json":
        return JSONResponse(verbose(transcript, words, seconds, asked))
    text = f"{transcript.text}\n" if asked.form == "text" else format_transcript(transcript, "", asked.form)
    return PlainTextResponse(text, media_type=TYPES[asked.form])


def verbose(transcript: Transcript, words: list[Segment], seconds: float, asked: Asked) -> dict:
    """All of OpenAI's fields; null is what the model does not know."""
    segments = [
        {
            "id": number,
            "seek": 0,
            "start": round(segment.start, 2),
            "end": round(segment.end, 2),
            "text": segment.text,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": None,
            "compression_ratio": round(len(segment.text.encode()) / len(zlib.compress(segment.text.encode())), 3),
            "no_speech_prob": None,
        }
        for number, segment in enumerate(transcript.segments)
    ]
    head = {"task": "transcribe", "language": asked.language or "unknown", "duration": round(seconds, 3), "text": transcript.text}
    timed = [{"word": word.text, "start": round(word.start, 2), "end": round(word.end, 2)} for word in words]
    return head | {"segments": segments, "usage": usage(seconds)} | ({"words": timed} if asked.words else {})


def usage(seconds: float) -> dict:
    return {"type": "duration", "seconds": max(1, round(seconds))}
