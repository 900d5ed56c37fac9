"""tools/setup.sh: an environment that satisfies the requirements is used as it is; the messages of machines that cannot have one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = "bash dirname cksum cat awk df rm mkdir touch mv flock".split()


@pytest.fixture
def machine(tmp_path):
    """A checkout's tools/ in a folder of its own, and a PATH with no python: run(NAME=script) puts scripts there first."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("venv", ".*"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        if path := shutil.which(name):
            (programs / name).symlink_to(path)

    def run(environment: dict[str, str] | None = None, **scripts: str) -> subprocess.CompletedProcess:
        for name, text in scripts.items():
            (programs / name).unlink(missing_ok=True)  # a link to the machine's own program is replaced, never written through
            (programs / name).write_text(f"#!{shutil.which('bash')}\n{text}")
            (programs / name).chmod(0o755)
        command = [shutil.which("bash"), str(tmp_path / "tools/setup.sh")]
        settings = {"PATH": str(programs), "HOME": str(tmp_path)} | (environment or {})
        return subprocess.run(command, env=settings, text=True, capture_output=True, stdin=subprocess.DEVNULL)

    return run


def test_this_environment_satisfies_the_requirements():
    """The tests run in it, so it does; asked quickly, and without importing torch."""
    done = subprocess.run(
        ["bash", str(ROOT / "tools/setup.sh")], env=os.environ | {"PYTHON": sys.executable}, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n"), done.stderr


def requirements(tmp_path: Path, *lines: str) -> None:
    (tmp_path / "tools/requirements.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("line", ["pytest", "pytest>=1,<1000  # why", "# nothing", "torch==2.11.0"])
def test_satisfied(machine, tmp_path, line):
    if "torch" in line:
        torch = pytest.importorskip("torch")
        line = f"torch=={torch.__version__.split('+')[0]}"
    requirements(tmp_path, line)
    assert machine({"PYTHON": sys.executable}).stdout == f"{sys.executable}\n"


@pytest.mark.parametrize(
    "line, why",
    [("pytest>=1000", "pytest>=1000, this is"), ("pytest>=1,<2", "pytest>=1,<2, this is"), ("no-such-package", "no-such-package")],
)
def test_not_satisfied_says_why_before_anything_is_installed(machine, tmp_path, line, why):
    requirements(tmp_path, line)
    done = machine({"PYTHON": sys.executable}, df="echo head; echo disk 100 100 100")
    assert done.returncode == 1 and done.stdout == ""
    assert f"does not satisfy tools/requirements.txt: {why}" in done.stderr and "MB free, the environment takes" in done.stderr
    assert not (tmp_path / "tools/venv").exists()


OLD = 'case "$*" in *version_info\\[*|*%*) echo 3.8.1 ;; -) cat > /dev/null; echo "Python 3.10 or newer, this is 3.8" ;; *) exit 1 ;; esac\n'
BARE = 'case "$*" in *ensurepip*) exit 1 ;; -*requirements*) cat > /dev/null; echo torch ;; *%*) echo 3.11.2 ;; *) exit 0 ;; esac\n'


def test_no_python_or_too_old_or_without_venv(machine):
    done = machine()
    assert done.returncode == 1 and "Python 3.10 or newer is needed, found: none" in done.stderr and "PYTHON=" in done.stderr
    done = machine(python3=OLD)
    assert done.returncode == 1 and "found: python3 (3.8.1)" in done.stderr
    done = machine(python3=BARE)
    assert done.returncode == 1 and "apt-get install python3-venv" in done.stderr and "PYTHON=" in done.stderr


VENV = """case "$*" in
  -m\\ venv*) mkdir -p "$3/bin"; echo made >> "$3/../../log"; cp "$0" "$3/bin/python" ;;
  -m\\ pip*) echo "pip $FAIL" >> "${0%/tools/*}/log"; [ -z "$FAIL" ] ;;
  -\\ *) cat > /dev/null; echo "torch==2.11.0" ;;
  *%*) echo 3.11.2 ;;
esac
"""


def test_environment_is_made_once_and_an_unfinished_one_anew(machine, tmp_path):
    """A stand-in python that notes what it is asked to make."""
    (tmp_path / "bin/cp").symlink_to(shutil.which("cp"))
    done = machine({"FAIL": "yes"}, python3=VENV)
    assert done.returncode == 1 and "pip could not install" in done.stderr
    assert (tmp_path / "tools/venv/.unfinished").exists()
    done = machine(python3=VENV)
    python = str(tmp_path / "tools/venv/bin/python")
    assert (done.returncode, done.stdout) == (0, f"{python}\n"), done.stderr
    assert not (tmp_path / "tools/venv/.unfinished").exists() and not (tmp_path / "tools/venv/tmp").exists()
    log = (tmp_path / "log").read_text()
    assert log.split("\n")[:-1] == ["made", "pip yes", "made", "pip "]
    assert machine(python3=VENV).stdout == f"{python}\n" and (tmp_path / "log").read_text() == log
    with open(tmp_path / "tools/requirements.txt", "a") as stream:
        stream.write("one-more\n")
    assert machine(python3=VENV).returncode == 0 and (tmp_path / "log").read_text() == log + "made\npip \n"
