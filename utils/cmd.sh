#!/usr/bin/env bash
# The one place that decides where jobs run: cmd.sh [options] [JOB=1:nj] LOG COMMAND… (run.pl's command line).
# $CMD_BACKEND: local (default) or slurm. To add a back end, write run_NAME.sh beside this file.
#
# Say here or in the environment what your machines want:
# CMD_OPTIONS, for every job, whatever the back end; for example "--max-jobs-run 20 --mem 8G" (cmd.sh --help lists them)
# SLURM_OPTIONS, for sbatch; for example "--partition=gpu --time=24:00:00"
set -euo pipefail
utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
backend=$utils/run_${CMD_BACKEND:-local}.sh
if [ ! -f "$backend" ]; then
  echo "cmd.sh: error: no back end ${CMD_BACKEND}; there is no ${backend##*/} in utils" >&2
  exit 1
fi
export SLURM_OPTIONS=${SLURM_OPTIONS-}
# shellcheck disable=SC2086 # a list of options
exec bash "$backend" ${CMD_OPTIONS-} "$@"
