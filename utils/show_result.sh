#!/usr/bin/env bash
# Prints the scores of all experiments of a recipe as one table; run it in egs/CORPUS.
# utils/show_result.sh [EXP …]
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.show_result "$@"
