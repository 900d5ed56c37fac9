#!/usr/bin/env bash
# Trains, decodes and compares the variants of conf/ablation.yaml; run it in egs/CORPUS. Stopped and started again, it goes on.
# utils/ablation.sh [--variants VARIANT …] [--steps N] [--seeds SEED …] [--dry-run true] [-- OPTIONS OF run.sh]; --help
set -euo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$("$root/tools/setup.sh")}" -m steermoe.bin.ablation "$@"
