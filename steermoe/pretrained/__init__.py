"""Where trained adapters are. One comes with the code: what `transcribe` uses where no other is named, and `--init pretrained`
starts at. It is a package of stage 6, as `python -m steermoe.bin.pack --exp EXP --out pretrained` leaves it.
"""

from __future__ import annotations

from pathlib import Path

from steermoe.errors import UserError

NAME = "pretrained"  # what stands for it on a command line
FOLDER = Path(__file__).parent / "tiny"
PLACES = ("adapter.safetensors", "checkpoints/best.safetensors")


def adapter_path(text: str | Path) -> Path:
    """Where an adapter is on this disk: the word `pretrained`, a path, an archive FILE.zip, which is unpacked, or a hub's USER/NAME,
    which is downloaded. A folder that is really called `pretrained` is given as a Path, or with a / at its end.
    """
    if text == NAME:
        return FOLDER
    path = Path(text)
    if path.suffix == ".zip" and path.is_file():
        from steermoe.package import open_archive

        return open_archive(path)
    if isinstance(text, str) and not path.exists():
        from steermoe.hub import download, is_hub_id

        return download(text) if is_hub_id(text) else path
    return path


def find_adapter(path: str | Path) -> Path:
    """path: an adapter file, a package of stage 6 or its archive, an experiment folder, a hub id, or `pretrained`. UserError says what
    was looked for.
    """
    path = adapter_path(path)
    if path.is_file():
        return path
    for place in PLACES:
        if (path / place).is_file():
            return path / place
    if path == FOLDER:
        raise UserError(f"{path}: no adapter comes with this copy; name one, such as egs/librispeech/exp/whisper")
    raise UserError(f"{path}: no trained adapter here (looked for {', '.join(PLACES)}); train one first: ./run.sh --stage 4")


def init_files(init: str) -> list[Path]:
    """The file of the adapter that a training starts at, as an input of stamps; none for ""."""
    return [find_adapter(init)] if init else []
