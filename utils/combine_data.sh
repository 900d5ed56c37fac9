#!/usr/bin/env bash
# Joins Kaldi data directories into one.
# utils/combine_data.sh [--extra-files 'FILE1 FILE2'] [--skip-fix true] DEST SRC1 SRC2 …
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.data_dir combine "$@"
