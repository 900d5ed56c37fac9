#!/usr/bin/env bash
# Runs the tests, in the environment that tools/setup.sh finds or makes. Extra arguments go to pytest: tools/test.sh --slow
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$("$root/tools/setup.sh")
export PYTHON PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
cd "$root"
# Two files of tests at a time, one thread each: most of a test is waiting for a program to start. -n 0: one at a time.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest tests -q -n 2 --dist loadfile "$@"
