"""What the readers of the games share: a recording with its text, and one clear message for a file that is not the game's."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import numpy as np

from steermoe.errors import UserError

RATE = 11025  # of all recordings of these games, Hz


class Clip(NamedTuple):
    """key: its name in the game, lower case. text: what is said, as the game shows it, or None where that is not known.
    samples: reads the recording, float32 (N,) at RATE in [-1, 1].
    """

    key: str
    speaker: str
    text: str | None
    samples: Callable[[], np.ndarray]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """UserError that names the file if what is read in the block is cut short or something else."""
    try:
        yield
    except (struct.error, IndexError, ValueError) as error:
        raise UserError(f"{path}: not the game's, or cut short ({error}); remove its folder and run stage -1 again") from None
