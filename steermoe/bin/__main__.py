"""`python -m steermoe.bin VERB …` and the console command `steermoe VERB …`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from steermoe.bin.cli import run
from steermoe.registry import nearest


def verbs() -> dict[str, str]:
    """Name and first docstring line of every verb, without importing any."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    files = [file for file in files if file.stem not in ("__init__", "__main__", "cli")]
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0] for file in files}


def main() -> None:
    known = verbs()
    name = (sys.argv[1] if len(sys.argv) > 1 else "--help").replace("-", "_")
    if name in ("__help", "_h"):
        lines = [f"  {verb:16s} {line}" for verb, line in known.items()]
        run(lambda _: print("usage: steermoe VERB [OPTION …]; steermoe VERB --help", "", *lines, sep="\n"))
    elif name not in known:
        sys.exit(f"steermoe: error: unknown verb {sys.argv[1]!r}{nearest(name, list(known))}")
    else:
        sys.argv = [name, *sys.argv[2:]]
        runpy.run_module(f"steermoe.bin.{name}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
