"""The audio of an utterance in a page that lies in some folder: a player for a file that browsers play, or why there is none."""

from __future__ import annotations

import os
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

from steermoe.errors import UserError
from steermoe.files import atomic_write

PLAYED = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".webm")


def audio_link(entry: dict, folder: Path) -> str:
    """HTML for a line of data.jsonl ({"utt", "wav", "start", "end", …}; {} gives nothing).

    Files are linked where they are, relative to `folder`. What browsers do not play (G.722, SPHERE, audio in archives) is written
    to folder/audio as FLAC, once.
    """
    wav = entry.get("wav")
    if not wav:
        return ""
    if wav.rstrip().endswith("|"):
        return "<small>audio made by a command, not a file</small>"
    start, end = entry.get("start"), entry.get("end")
    if wav.lower().endswith(PLAYED):
        if not os.path.isfile(wav):
            return f"<small>no audio: {escape(wav)} is missing</small>"
        target = os.path.relpath(wav, folder)
        part = "" if start is None else f"#t={start:g}" + ("" if end is None else f",{end:g}")
    else:
        name = sha256(f"{entry['utt']} {wav} {start} {end}".encode()).hexdigest()[:16]
        target, part = f"audio/{name}.flac", ""
        try:
            _convert(wav, start, end, folder / target)
        except UserError as error:
            return f"<small>no audio: {escape(str(error))}</small>"
    address = quote(target.replace(os.sep, "/"))
    return f'<audio controls preload="none" src="{escape(address + part)}"></audio>'


def _convert(wav: str, start: float | None, end: float | None, target: Path) -> None:
    if target.is_file() and os.path.isfile(wav) and target.stat().st_mtime >= os.path.getmtime(wav):
        return
    import soundfile

    from steermoe.data.audio import load_audio

    samples = load_audio(wav, start, end)
    with atomic_write(target, "wb") as stream:
        soundfile.write(stream, samples, 16000, format="FLAC", subtype="PCM_16")
