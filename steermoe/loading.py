"""Loading is mostly importing: torch and transformers make millions of objects that stay."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def paused_collection() -> Iterator[None]:
    """Python's garbage collector would look through all of them again and again, a sixth of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
