"""Progress with rate and time left: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """with Progress("dump", total, "utt") as progress: progress.update(1, note="…").

    done: how much was finished by an earlier, interrupted run (not counted in the rate). shown: False prints nothing. inner: part of
    another's work; leaves no bar, and no line if it is over before one is due.
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0, every_s: float = 10.0, shown: bool = True, inner: bool = False):
        self.name, self.total, self.unit, self.every_s = name, total, unit, every_s
        self.count = self.start_count = done
        self.start = self.last = time.monotonic()
        self.note = ""
        self.bar, self.shown, self.inner = None, shown, inner
        if shown and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, leave=not inner)

    def update(self, amount: int = 1, note: str = "") -> None:
        self.count += amount
        self.note = note or self.note
        if self.bar is not None:
            self.bar.update(amount)
            if note:
                self.bar.set_postfix_str(note)
        elif time.monotonic() - self.last >= self.every_s:
            self._print()

    def write(self, line: str) -> None:
        """Prints a line of its own without breaking the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)

    def _print(self) -> None:
        self.last = time.monotonic()
        if not self.shown:
            return
        rate = (self.count - self.start_count) / max(self.last - self.start, 1e-9)
        left = (self.total - self.count) / rate if rate > 0 else float("inf")
        clock = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else "over a day"
        share = 100 * self.count / max(self.total, 1)
        note = f"  {self.note}" if self.note else ""
        print(
            f"{self.name}: {self.count}/{self.total} {self.unit} ({share:.0f} %), {rate:.2f} {self.unit}/s, {clock} left{note}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.count > self.start_count and not self.inner:
            self._print()
