#!/usr/bin/env bash
# Writes some utterances of a Kaldi data directory to a new one.
# utils/subset_data_dir.sh [--first|--last|--shortest|--speakers|--per-spk] SRC NUM-UTT DEST
# utils/subset_data_dir.sh --utt-list FILE|--spk-list FILE SRC DEST
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.data_dir subset "$@"
