"""Archives of published corpora: fetched with resume, checked against a pinned MD5, unpacked whole or not at all.

Only the standard library is used before the first byte arrives, so that `check` can say within seconds, on a bare machine and
before an environment is made, that nothing can be reached.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Sequence

from steermoe.errors import UserError

MIRROR = "https://www.openslr.org/resources"
BLOCK = 1 << 20
LARGE = 1 << 30  # bytes of an archive that is worth a progress bar
TIMEOUT_S = 30.0
CHECK_S = 10.0  # names are looked up without a time limit of their own
TRIES = 5  # in a row without a byte of progress
WAIT_S = 2.0
GB = 1e9
ELSEWHERE = "or take the recipe that needs neither: cd ../asterisk && ./run.sh"


class Archive(NamedTuple):
    """file: its path below the mirror, "12/dev-clean.tar.gz". md5: 32 hex digits, as published beside it.
    makes: what is there when it has been unpacked, below the folder of downloads, "LibriSpeech/dev-clean": a folder of the tar
    file; the folder into which a zip file is unpacked; a file of the archive's own name where there is nothing to unpack.
    """

    file: str
    md5: str
    makes: str

    @property
    def name(self) -> str:
        return self.file.rsplit("/", 1)[-1]


def missing(archives: Sequence[Archive], downloads: str | Path) -> list[Archive]:
    """Those that have not been unpacked yet."""
    return [archive for archive in archives if not (Path(downloads) / archive.makes).exists()]


def check(archives: Sequence[Archive], downloads: str | Path, corpus: str, mirror: str = MIRROR) -> None:
    """UserError within CHECK_S seconds if something is needed and cannot be reached. corpus: what --corpus has to hold."""
    needed = [archive for archive in missing(archives, downloads) if not (Path(downloads) / archive.name).is_file()]
    if not needed:
        return
    url = _url(mirror, needed[0])
    failure: list[str] = ["no answer"]

    def ask() -> None:
        try:
            with closing(_open(url, 0, CHECK_S, method="HEAD")):
                failure.clear()
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure[0] = _reason(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CHECK_S)
    if failure:
        raise UserError(unreachable(url, failure[0], corpus))


def unreachable(what: str, reason: str, corpus: str) -> str:
    """The one message for a corpus that cannot be had."""
    return f"{what} cannot be reached ({reason}); give --corpus DIR, {corpus}, {ELSEWHERE}"


def fetch(archives: Sequence[Archive], downloads: str | Path, corpus: str, mirror: str = MIRROR) -> None:
    """Fetches and unpacks what is missing. An archive that lies in `downloads` already is checked and used.

    UserError: nothing to be reached, a full disk (before the first byte), another archive than the published one.
    """
    downloads = Path(downloads)
    downloads.mkdir(parents=True, exist_ok=True)
    check(archives, downloads, corpus, mirror)
    todo = missing(archives, downloads)
    _check_space(todo, downloads, mirror)
    for archive in todo:
        path = downloads / archive.name
        given = path.is_file()
        if not given:
            _download(archive, path, corpus, mirror)
        elif _md5(path) != archive.md5:
            raise UserError(f"{path}: its MD5 is not {archive.md5}: damaged, or another archive; remove it and run again")
        _unpack(archive, path, downloads)
        unneeded = f"; {path} is not needed any more" * path.is_file()
        print(f"download: {downloads / archive.makes} ready{unneeded}", file=sys.stderr)
    for archive in archives:
        if archive not in todo:
            print(f"download: {downloads / archive.makes} up to date", file=sys.stderr)


def _url(mirror: str, archive: Archive) -> str:
    return f"{mirror.rstrip('/')}/{archive.file}"


def _open(url: str, start: int, timeout: float, method: str = "GET") -> http.client.HTTPResponse:
    headers = {"User-Agent": "steermoe"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=timeout)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _check_space(archives: Sequence[Archive], downloads: Path, mirror: str) -> None:
    """Room for each archive and, as speech is hardly compressed further, as much again for its content."""
    needed = 0
    for archive in archives:
        here, part = downloads / archive.name, _part(downloads / archive.name)
        if here.is_file():
            needed += here.stat().st_size
            continue
        try:
            with closing(_open(_url(mirror, archive), 0, TIMEOUT_S, method="HEAD")) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
        except (OSError, http.client.HTTPException, ValueError):
            continue  # fetching it will say what is wrong
        needed += 2 * size - (part.stat().st_size if part.is_file() else 0)
    free = shutil.disk_usage(downloads).free
    if needed > free:
        raise UserError(
            f"{downloads}: {needed / GB:.1f} GB needed for {', '.join(archive.name for archive in archives)} and their content, "
            f"{free / GB:.1f} GB free; make room, or let downloads/ be a link to a larger disk"
        )


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _download(archive: Archive, path: Path, corpus: str, mirror: str) -> None:
    """Into path.part, which a later run goes on from, then to `path` once its MD5 is right."""
    part, url = _part(path), _url(mirror, archive)
    resumed = part.is_file() and part.stat().st_size > 0
    _transfer(url, part, corpus)
    got = _md5(part)
    if got != archive.md5 and resumed:  # the half that was there may have been of something else
        print(f"download: {path.name}: the parts do not fit together (MD5 {got}), once more from the start", file=sys.stderr)
        part.unlink()
        _transfer(url, part, corpus)
        got = _md5(part)
    if got != archive.md5:
        part.unlink()
        raise UserError(f"{url}: MD5 {got}, wanted {archive.md5}: not the published archive; take another mirror (--mirror URL)")
    os.replace(part, path)


def _transfer(url: str, part: Path, corpus: str) -> None:
    from steermoe.progress import Progress

    tries = 0
    while True:
        start = part.stat().st_size if part.is_file() else 0
        try:
            with closing(_open(url, start, TIMEOUT_S)) as answer:
                if answer.status != 206:  # the server sends the whole file
                    start = 0
                length = answer.headers.get("Content-Length")
                total = start + int(length) if length else 0
                bar = Progress(part.stem, total >> 20, "MiB", start >> 20)
                with open(part, "ab" if start else "wb") as stream, bar as progress:
                    done = start
                    while block := answer.read(BLOCK):
                        stream.write(block)
                        progress.update((done + len(block) >> 20) - (done >> 20))
                        done += len(block)
                        tries = 0
            if done >= total:
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == 416 and start:  # nothing after what is there: complete, or longer than the archive; the MD5 tells
                return
            reason = _reason(error)
            if error.code < 500:
                raise UserError(unreachable(url, reason, corpus)) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = _reason(error)
        tries += 1
        if tries >= TRIES:
            raise UserError(unreachable(url, f"{reason}; what has come is kept, and the same command goes on from there", corpus))
        print(f"download: {part.stem}: {reason}, trying again", file=sys.stderr)
        time.sleep(WAIT_S)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream, _progress("check", path) as progress:
        while block := stream.read(BLOCK):
            digest.update(block)
            progress.update((stream.tell() >> 20) - progress.count)
    return digest.hexdigest()


def _progress(what: str, path: Path):
    """Of reading an archive, in MiB; silent for one that is read in seconds."""
    from steermoe.progress import Progress

    size = path.stat().st_size
    return Progress(f"{what} {path.name}", size >> 20, "MiB", shown=size >= LARGE)


def _unpack(archive: Archive, path: Path, downloads: Path) -> None:
    """Into a folder of its own, from where only the finished content is moved."""
    if Path(archive.makes).name == archive.name:
        (downloads / archive.makes).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, downloads / archive.makes)
        return
    work = downloads / f".unpack.{archive.name}"
    shutil.rmtree(work, ignore_errors=True)
    print(f"download: unpacking {path}", file=sys.stderr)
    made = work / archive.makes
    if path.suffix == ".zip":
        unpack_zip(path, made)
    else:
        unpack_tar(path, work)
    if not made.is_dir():
        raise UserError(f"{path}: has no {archive.makes} in it; remove it and run again")
    for inner in sorted(made.glob("wav/*.tar.gz")):  # AISHELL: an archive for each speaker
        unpack_tar(inner, inner.parent)
        inner.unlink()
    target = downloads / archive.makes
    target.parent.mkdir(parents=True, exist_ok=True)
    for note in made.parent.glob("*.TXT") if made.parent != work else ():  # SPEAKERS.TXT, LICENSE.TXT: the same in every part
        os.replace(note, target.parent / note.name)
    os.replace(made, target)
    shutil.rmtree(work)


def unpack_zip(path: Path, out: Path) -> None:
    """As unpack_tar; a link in a zip file becomes a plain file that holds its target's name."""
    out.mkdir(parents=True, exist_ok=True)
    root = out.resolve()
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive, _progress("unpack", path) as progress:
            for member in archive.infolist():
                if not (root / member.filename).resolve().is_relative_to(root):
                    raise UserError(f"{path}: {member.filename!r} is outside its folder; it is not the corpus")
                archive.extract(member, root)
                progress.update((member.header_offset + member.compress_size >> 20) - progress.count)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: a broken archive ({error}); remove it and run again") from None


def unpack_tar(path: Path, out: Path) -> None:
    """Files and folders only, none outside `out`. UserError for anything else and for a broken archive."""
    out.mkdir(parents=True, exist_ok=True)
    root = out.resolve()
    try:
        with open(path, "rb") as stream, tarfile.open(fileobj=stream) as tar, _progress("unpack", path) as progress:
            for member in tar:
                progress.update((stream.tell() >> 20) - progress.count)
                inside = (root / member.name).resolve()
                if not (member.isfile() or member.isdir()) or not inside.is_relative_to(root):
                    raise UserError(f"{path}: {member.name!r} is a link, a device or outside its folder; it is not the corpus")
                member.mode = 0o755 if member.isdir() else 0o644
                tar.extract(member, root, set_attrs=False, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk
        raise UserError(f"{path}: a broken archive ({error}); remove it and run again") from None
