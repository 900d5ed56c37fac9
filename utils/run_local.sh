#!/usr/bin/env bash
# Runs jobs on this machine, with run.pl's command line: run_local.sh [options] JOB=1:nj log/x.JOB.log command … JOB …
set -eo pipefail # not -u: bash before 4.4 takes an empty array for an unset one
utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/jobs.sh
. "$utils/jobs.sh"

parse_jobs "$@"
if [ "$max_jobs_run" -eq 0 ]; then
  max_jobs_run=$((last - first + 1))
fi
if [ "$num_threads" -gt 0 ]; then
  export OMP_NUM_THREADS=$num_threads
elif [ -n "$job_name" ] && [ "$last" -gt "$first" ]; then
  export OMP_NUM_THREADS=1 # nj jobs with all cores each would only get in each other's way
fi

# Jobs with a GPU each take them in turn: those that $CUDA_VISIBLE_DEVICES names, else all of this machine.
devices=()
if [ "$gpu" -eq 1 ] && [ "$last" -gt "$first" ]; then
  if [ -n "$CUDA_VISIBLE_DEVICES" ]; then
    IFS=, read -r -a devices <<< "$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null)
  fi
fi

# The jobs inherit this lock: whatever has become of an earlier run_local.sh, no second job writes what a living one is writing.
if command -v flock > /dev/null; then
  exec 9> "$(dirname "$log")/.${log##*/}.lock"
  flock -n 9 || {
    echo "run_local.sh: waiting for an earlier run of the same jobs (${log##*/}) to end" >&2
    flock 9
  }
fi

declare -A pid_of began
stop() { # ends what runs, then this script
  local number
  for number in "${!pid_of[@]}"; do
    kill -TERM "${pid_of[$number]}" 2> /dev/null || true
  done
  wait
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP

start() {
  local number=$1 file arguments=("${command[@]}")
  file=$(log_of "$number")
  [ -z "$job_name" ] || arguments=("${command[@]//"$job_name"/$number}")
  log_begin "$file" "${arguments[@]}"
  began[$number]=$SECONDS
  # A background job of a script ignores Ctrl-C unless it is told not to.
  (
    trap - INT
    [ "${#devices[@]}" -eq 0 ] || export CUDA_VISIBLE_DEVICES=${devices[(number - first) % ${#devices[@]}]}
    exec "${arguments[@]}"
  ) >> "$file" 2>&1 < /dev/null &
  pid_of[$number]=$!
}

next=$first finished=0 failed=0 last_progress=$SECONDS polls=0
[ -n "$job_name" ] || shown_bytes=$(log_size)
while true; do
  while [ "$next" -le "$last" ] && [ "${#pid_of[@]}" -lt "$max_jobs_run" ] && [ "$failed" -eq 0 ]; do
    start "$next"
    next=$((next + 1))
  done
  for number in "${!pid_of[@]}"; do
    kill -0 "${pid_of[$number]}" 2> /dev/null && continue
    status=0
    wait "${pid_of[$number]}" || status=$?
    [ -n "$job_name" ] || show_new
    log_end "$(log_of "$number")" "$status" "$((SECONDS - began[number]))"
    unset "pid_of[$number]"
    finished=$((finished + 1))
    if [ "$status" -ne 0 ]; then
      failed=$status
      report_failure "$number" "$status"
    fi
  done
  if [ "${#pid_of[@]}" -eq 0 ]; then
    if [ "$next" -gt "$last" ] || [ "$failed" -ne 0 ]; then break; fi
    continue
  fi
  if orphaned; then stop 143; fi
  if [ -z "$job_name" ]; then
    show_new
  elif [ "$((SECONDS - last_progress))" -ge 10 ]; then
    last_progress=$SECONDS
    show_progress "$finished"
  fi
  polls=$((polls + 1))
  if [ "$polls" -lt 40 ]; then sleep 0.05; else sleep 0.25; fi
done
exit "$failed"
