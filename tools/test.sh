#!/usr/bin/env bash
# Runs the tests, in the environment that tools/setup.sh finds or makes. Extra arguments go to pytest: tools/test.sh --slow
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$("$root/tools/setup.sh")
export PYTHON PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
cd "$root"
exec "$PYTHON" -m pytest tests -q "$@"
