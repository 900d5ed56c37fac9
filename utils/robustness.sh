#!/usr/bin/env bash
# Error rates of a trained adapter under noise, at other rates and loudness, and without speech; run it in egs/CORPUS.
# utils/robustness.sh --exp exp/NAME --test-set SET [--noise sounds=PATH …] [--max-utts N]; --help
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.robustness "$@"
