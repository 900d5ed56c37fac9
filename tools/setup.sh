#!/usr/bin/env bash
# Finds or makes the Python environment of tools/requirements.txt, and prints the path of its python.
# usage: PYTHON=$(tools/setup.sh)
# An environment that already satisfies the requirements ($PYTHON, else the active python3) is used as it is. Otherwise
# tools/venv is made (about 90 s and 5 GB, CUDA libraries included; it runs without a GPU too); an interrupted one is made again.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$tools/requirements.txt
venv=$tools/venv
stamp=$venv/requirements.cksum # written last: what the environment was made from
needed_kb=6000000

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup.sh: error: %s\n' "$*" >&2; exit 1; }

# Prints, for a python, the first requirement that it does not satisfy (nothing: all are satisfied). Imports none of them.
first_missing() {
  "$1" - "$requirements" 2> /dev/null << 'END' || echo "it does not run"
import re, sys

if sys.version_info < (3, 10):
    sys.exit(print("Python 3.10 or newer, this is %d.%d" % sys.version_info[:2]))
from importlib import metadata


def release(version):
    numbers = [int(part) for part in re.match(r"\d+(?:\.\d+)*", version).group().split(".")]
    return numbers + [0] * (6 - len(numbers))


compare = {"==": lambda a, b: a == b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}
compare["!="] = lambda a, b: a != b
installed = {}
for line in open(sys.argv[1], encoding="utf-8"):
    line = line.split("#")[0].strip()
    if not line:
        continue
    name, bounds = re.match(r"([\w.-]+)\s*(.*)", line).groups()
    try:
        installed[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        sys.exit(print(line))
    for bound in filter(None, bounds.split(",")):
        operator, wanted = re.match(r"\s*(==|>=|<=|!=|<)\s*(\S+)", bound).groups()
        if not compare[operator](release(installed[name]), release(wanted)):
            sys.exit(print("%s, this is %s" % (line, installed[name])))
# torchaudio is built for one CUDA release and fails on import beside a torch of another build, such as 2.11.0+cpu.
build = {name: (installed[name] + "+cu130").split("+")[1] for name in ("torch", "torchaudio") if name in installed}
if len(set(build.values())) > 1:
    print("torch and torchaudio of the same build, these are " + " and ".join(sorted(build.values())))
END
}

finished() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c "" 2> /dev/null; }

find_base() { # a python >= 3.10 that can make virtual environments
  local name found=""
  for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
    command -v "$name" > /dev/null || continue
    found="$found $name ($("$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null || echo broken))"
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
      if ! "$name" -c 'import ensurepip, venv' 2> /dev/null; then
        die "$name cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv),
  or give another Python: PYTHON=/path/to/python3"
      fi
      base=$name
      return
    fi
  done
  die "Python 3.10 or newer is needed, found:${found:- none}; install one (Debian, Ubuntu: apt-get install python3 python3-venv),
  or give its path: PYTHON=/path/to/python3"
}

make_venv() {
  local free_kb
  free_kb=$(df -Pk "$tools" | awk 'NR == 2 {print $4}')
  [ "$free_kb" -ge "$needed_kb" ] ||
    die "$tools: $((free_kb / 1000)) MB free, the environment takes $((needed_kb / 1000)) MB; free some"
  # What a killed pip leaves can look installed and not be, so an unfinished environment is made anew; pip's cache saves the
  # downloads.
  if [ -f "$venv/.unfinished" ] || ! "$venv/bin/python" -c "" 2> /dev/null; then
    rm -rf "$venv"
  fi
  mkdir -p "$venv/tmp"
  touch "$venv/.unfinished"
  rm -f "$stamp"
  "$base" -m venv "$venv" >&2 || die "$base -m venv failed (see above); give another Python: PYTHON=/path/to/python3"
  # On this disk, as /tmp may be too small for the 2.5 GB that pip unpacks.
  TMPDIR=$venv/tmp "$venv/bin/python" -m pip install --disable-pip-version-check -r "$requirements" >&2 ||
    die "pip could not install tools/requirements.txt (see above); put that right and run the same command again"
  say "checking the installed libraries"
  "$venv/bin/python" -c "import torch, torchaudio, transformers" >&2 ||
    die "the installed libraries do not work together (see above)"
  rm -rf "$venv/tmp" "$venv/.unfinished"
  printf '%s\n' "$wanted" > "$stamp.tmp"
  mv "$stamp.tmp" "$stamp"
}

wanted=$(cksum < "$requirements")
current=$(command -v "${PYTHON:-python3}" || true)
why="there is no ${PYTHON:-python3}"
if [ -n "$current" ]; then
  why=$(first_missing "$current")
  if [ -z "$why" ]; then
    printf '%s\n' "$current"
    exit 0
  fi
fi
if ! finished; then
  if command -v flock > /dev/null; then # two recipes started at once
    exec 9> "$tools/.setup.lock"
    flock -n 9 || { say "waiting for another setup.sh" && flock 9; }
  fi
fi
if ! finished; then
  say "${current:-python3} does not satisfy tools/requirements.txt: $why"
  find_base
  say "making tools/venv with $base (once; about 5 GB, 1 to 5 minutes)"
  make_venv
  say "tools/venv is ready"
fi
printf '%s\n' "$venv/bin/python"
