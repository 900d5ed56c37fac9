"""Speech from text by a synthesiser: flite, downloaded or installed, or any other command."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from pathlib import Path
from typing import Mapping

from steermoe.data.audio import load_audio
from steermoe.errors import UserError

FLITE = "flite -voice {voice} -t {text} -o {wav}"


def recording(folder: Path, utt: str, command: str, text: str) -> Path:
    """The file of an utterance; another text or another synthesiser is another recording."""
    digest = hashlib.sha256(f"{command}\n{text}".encode()).hexdigest()[:8]
    return folder / f"{utt}.{digest}.wav"


def speak(command: str, values: Mapping[str, str], wav: Path, programs: Path) -> None:
    """Makes one recording, if it is not there. command: words with {wav} and the names of `values` in them. programs: a folder
    with bin/ and lib/ whose programs come before the installed ones. UserError if there is no audio afterwards.
    """
    if wav.is_file():
        return
    wav.parent.mkdir(parents=True, exist_ok=True)
    begun = wav.with_name(f".{wav.name}")
    # Split first and filled in afterwards, and no shell: no text can be taken for anything else.
    words = [word.format(wav=begun, **values) for word in shlex.split(command)]
    done = run(words, programs)
    if done.returncode or not begun.is_file():
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{shlex.join(words)}: {why}")
    load_audio(begun)  # names what is no audio
    os.replace(begun, wav)


def flite_voices(programs: Path) -> list[str]:
    """The names of flite's voices: given one that it does not know, flite speaks with another without a word."""
    return run(["flite", "-lv"], programs).stdout.partition(":")[2].split()


def run(words: list[str], programs: Path) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    for name, folder in (("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")):
        environment[name] = os.pathsep.join(filter(None, [str(programs.absolute() / folder), environment.get(name)]))
    try:
        return subprocess.run(
            words, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]}: {error}; stage -1 (./run.sh --stage -1) fetches flite") from None
