"""The trained adapter that comes with the code: what `transcribe` uses where no other is named, and `--init pretrained` starts from.

`tiny` is a package of stage 6 as `python -m steermoe.bin.pack --exp EXP --out pretrained` leaves it.
"""

from __future__ import annotations

from pathlib import Path

NAME = "pretrained"  # what stands for it on a command line
FOLDER = Path(__file__).parent / "tiny"


def adapter_path(text: str | Path) -> Path:
    """The word `pretrained`, or a path; a folder that is really called so is given as a Path, or with a / at its end."""
    return FOLDER if text == NAME else Path(text)
