#!/usr/bin/env bash
# Splits a Kaldi data directory into DATA-DIR/splitN/1 to N (with --per-utt: DATA-DIR/splitNutt/1 to N).
# utils/split_data.sh [--per-utt] DATA-DIR N
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.data_dir split "$@"
