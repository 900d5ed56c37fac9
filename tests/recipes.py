"""What the tests of recipes share: a recipe's scripts as modules, and a copy of it that runs with stand-ins for the verbs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
MADE = ("data", "dump", "exp", "downloads", "__pycache__")


def load_script(path: str) -> ModuleType:
    """egs/… as a module; its neighbours can be imported by it as they can when it runs."""
    file = ROOT / "egs" / path
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def write_audio(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, round(16000 * seconds))
    soundfile.write(path, noise, 16000, **({"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Copy:
    """Recipes in a repository of their own, whose verbs are fake_python.sh; local/*.py are the real ones."""

    def __init__(self, folder: Path, *names: str):
        self.root = folder
        shutil.copytree(ROOT / "utils", folder / "utils")
        for name in names:
            shutil.copytree(ROOT / "egs" / name, folder / "egs" / name, ignore=shutil.ignore_patterns(*MADE))
        (folder / "steermoe").symlink_to(ROOT / "steermoe")
        (folder / "tools").mkdir()
        (folder / "tools/setup.sh").write_text('echo "$PYTHON"\n')
        fake = str(ROOT / "tests" / "fake_python.sh")
        self.environment = os.environ | {
            "PYTHON": fake, "REAL_PYTHON": sys.executable, "FAKE": str(folder), "no_proxy": "127.0.0.1",
        }  # fmt: skip

    def run(self, name: str, *options: str) -> subprocess.CompletedProcess:
        command = ["bash", str(self.root / "egs" / name / "run.sh"), *options]
        return subprocess.run(
            command, env=self.environment, text=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL
        )
