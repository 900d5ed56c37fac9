"""`pip install .` into a fresh environment: the command `steermoe`, its verbs, the files that the code reads beside itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from steermoe.bin.__main__ import verbs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """bin/ of a fresh environment, away from the checkout. The libraries that are needed are those of this one; pip fetches what
    builds a package.
    """
    folder = tmp_path_factory.mktemp("install")
    copy = folder / "copy"  # pip leaves build/ in what it installs
    shutil.copytree(ROOT / "steermoe", copy / "steermoe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE", "tools/requirements.txt"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "fresh"], check=True)
    (site,) = (folder / "fresh/lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [folder / "fresh/bin/python", "-m", "pip", "install", "-q", "--no-deps", str(copy)]
    subprocess.run(install, check=True, cwd=folder)
    shutil.rmtree(copy)
    return folder / "fresh/bin"


def run(program: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([program, *words], capture_output=True, text=True, env=environment, cwd=program.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.network
def test_the_command_has_all_verbs(installed):
    """What breaks it: a verb's file that setup.py does not pack, or no console command."""
    listed = run(installed / "steermoe")
    assert all(f"\n  {verb} " in listed for verb in verbs()) and len(verbs()) > 20
    for verb in ("transcribe", "import", "pack"):
        assert f"usage: steermoe {verb}" in run(installed / "steermoe", verb, "--help")


@pytest.mark.network
def test_what_the_code_reads_beside_itself_is_there(installed):
    """What breaks it: a file that is not in setup.py's package_data."""
    package = Path(run(installed / "python", "-c", "import steermoe; print(steermoe.__file__)").strip()).parent
    assert package.is_relative_to(installed.parent)
    tracked = subprocess.run(["git", "ls-files", "steermoe"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    left_out = ("steermoe/pretrained/tiny/log/", "steermoe/pretrained/tiny/plots/")
    needed = [name for name in tracked if not name.startswith(left_out)]
    assert not tracked or needed and [name for name in needed if not (package.parent / name).is_file()] == []


@pytest.mark.network
def test_importing_takes_under_two_seconds(installed):
    code = "import time, steermoe; steermoe.SteerMoE; print(time.process_time())"
    assert float(run(installed / "python", "-c", code)) < 2
