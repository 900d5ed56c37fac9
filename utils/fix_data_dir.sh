#!/usr/bin/env bash
# Sorts the files of a Kaldi data directory and keeps what is in all of them; the old files stay in DATA-DIR/.backup.
# utils/fix_data_dir.sh DATA-DIR
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.data_dir fix "$@"
