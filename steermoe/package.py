"""A package: a folder with all that decoding needs beside the frozen models, and the same in one file, FILE.zip.

A package may come from a stranger. Nothing in an archive is executed: only files of the kinds below are accepted, none of which
can hold code that is run when it is read. What opening one writes lies in a folder of its own in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from steermoe.errors import UserError
from steermoe.files import atomic_write, sha256_file

# Of the experiment, where they are; TRAINING.md is written by hand, where one command does not tell it all.
BESIDE = ("RESULTS.md", "TRAINING.md", "log/train.jsonl", "log/samples.jsonl", "plots/*.png")
NAME = r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*"
MEMBER = re.compile(
    r"adapter\.safetensors|config\.yaml|(README|RESULTS|TRAINING)\.md|"
    rf"log/{NAME}\.jsonl|plots/{NAME}\.png|exp/{NAME}/(model\.safetensors|config\.json)"
)
LIMIT = 2 << 30  # bytes that an archive may unpack to, and
MEMBERS = 1000  # files


def home(adapter: Path) -> Path:
    """The experiment folder or package that an adapter file is of."""
    return adapter.parent.parent if adapter.parent.name == "checkpoints" else adapter.parent


def complete(out: Path, origin: Path | None, name: str, config, metadata: dict) -> None:
    """Makes a package of the folder `out`, in which adapter.safetensors is already.

    origin: the adapter file whose experiment or package has the results, the log, the curves and an encoder that a recipe has
    made itself; None where there is nothing of these. metadata: of the adapter. name: for the model card.
    """
    from steermoe.card import model_card
    from steermoe.checkpoint import beside
    from steermoe.fetch import MADE_HERE

    if origin is not None:
        encoder = config.encoder_conf["model"]
        if encoder.startswith(MADE_HERE):
            for file in ("model.safetensors", "config.json"):
                copy(Path(beside(origin, encoder)) / file, out / encoder / file)
        for file in (file for pattern in BESIDE for file in sorted(home(origin).glob(pattern))):
            copy(file, out / file.relative_to(home(origin)))
    config.save(out / "config.yaml")
    with atomic_write(out / "README.md") as stream:
        stream.write(model_card(name, out, config, metadata))


def copy(source: Path, target: Path) -> None:
    with atomic_write(target, "wb") as written, open(source, "rb") as read:
        shutil.copyfileobj(read, written)


def write_archive(folder: Path, path: Path) -> None:
    """The package in `folder` as one file. The same package gives the same bytes."""
    files = sorted(file for file in folder.rglob("*") if MEMBER.fullmatch(file.relative_to(folder).as_posix()))
    with atomic_write(path, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(folder).as_posix())  # of 1980, so that times make no difference
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            member.file_size = file.stat().st_size  # over 2 GiB the entry has another form
            with open(file, "rb") as read, archive.open(member, "w") as written:
                shutil.copyfileobj(read, written)


def open_archive(path: Path) -> Path:
    """The folder in the cache with an archive's content, unpacked where that has not been done before.

    UserError for a file that is no zip archive or is damaged, and for one with anything but a package's files in it: another
    name, a path out of the folder, a link, a device, a name twice, an encrypted file, more than LIMIT bytes or MEMBERS files.
    """
    from steermoe.fetch import cache_dir

    folder = cache_dir() / "packages" / sha256_file(path)
    if folder.is_dir():
        return folder
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in checked(path, archive.infolist()):
                (work / member.filename).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as read, open(work / member.filename, "xb") as written:
                    shutil.copyfileobj(read, written)  # never more than the size that was checked
        os.rename(work, folder)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path}: not a package, or a damaged one ({error}); copy it again") from None
    except OSError:
        if not folder.is_dir():  # made by another process meanwhile
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def checked(path: Path, members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The files among them. UserError names the first one that a package does not have."""
    files = [member for member in members if not member.is_dir()]
    names = [member.filename.lower() for member in files]  # two that differ in case are one file on some disks
    for member in files:
        kind = stat.S_IFMT(member.external_attr >> 16)
        wrong = {
            "not a file of a package": not MEMBER.fullmatch(member.filename),
            "a link or a device": kind not in (0, stat.S_IFREG),
            "in it twice": names.count(member.filename.lower()) > 1,
            "encrypted": bool(member.flag_bits & 1),
        }
        if reason := next((reason for reason, found in wrong.items() if found), None):
            raise UserError(f"{path}: {member.filename!r} is {reason}; nothing was unpacked. Stage 6 makes such packages")
    if len(files) > MEMBERS or sum(member.file_size for member in files) > LIMIT:
        raise UserError(f"{path}: unpacks to more than {MEMBERS} files or {LIMIT >> 30} GiB; nothing was unpacked")
    if "adapter.safetensors" not in names:
        raise UserError(f"{path}: no adapter.safetensors in it; stage 6 makes packages: ./run.sh --stage 6")
    return files
