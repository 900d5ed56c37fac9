#!/usr/bin/env bash
# The one place that decides where jobs run: cmd.sh [options] [JOB=1:nj] LOG COMMAND… (run.pl's command line).
# $CMD_BACKEND: local (default) or slurm. To add a back end, write run_NAME.sh beside this file.
#
# For Slurm, say here or in the environment what your cluster wants, for example: SLURM_OPTIONS="--partition=gpu --time=24:00:00"
set -euo pipefail
utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
backend=$utils/run_${CMD_BACKEND:-local}.sh
if [ ! -f "$backend" ]; then
  echo "cmd.sh: error: no back end ${CMD_BACKEND}; there is no ${backend##*/} in utils" >&2
  exit 1
fi
export SLURM_OPTIONS=${SLURM_OPTIONS-}
exec bash "$backend" "$@"
