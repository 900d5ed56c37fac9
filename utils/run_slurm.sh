#!/usr/bin/env bash
# Runs jobs through Slurm, with run.pl's command line: run_slurm.sh [options] JOB=1:nj log/x.JOB.log command … JOB …
# The jobs become one array; the log's folder must be on a disk that the nodes share. Further options for sbatch (partition,
# account, time) come from $SLURM_OPTIONS.
set -eo pipefail # not -u: bash before 4.4 takes an empty array for an unset one
utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/jobs.sh
. "$utils/jobs.sh"

parse_jobs "$@"
command -v sbatch > /dev/null || jobs_error "there is no sbatch on this machine; --cmd-backend local runs the jobs here"
work=$(mktemp -d "$(dirname "$log")/.slurm.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The script runs on the node. A task that Slurm kills leaves no status file, which says so.
{
  printf '#!/usr/bin/env bash\n. %q\n' "$utils/jobs.sh"
  declare -p job_name first last log command
  printf 'cd %q || exit 1\nwork=%q threads=%q\n' "$PWD" "$(cd "$work" && pwd)" "$num_threads"
  cat << 'END'
number=${SLURM_ARRAY_TASK_ID:-$first}
file=$(log_of "$number")
[ -z "$job_name" ] || command=("${command[@]//"$job_name"/$number}")
if [ "$threads" -gt 0 ]; then export OMP_NUM_THREADS=$threads; elif [ "$last" -gt "$first" ]; then export OMP_NUM_THREADS=1; fi
log_begin "$file" "${command[@]}"
SECONDS=0 status=0
"${command[@]}" >> "$file" 2>&1 < /dev/null || status=$?
log_end "$file" "$status" "$SECONDS"
echo "$status" > "$work/status.$number.tmp" && mv "$work/status.$number.tmp" "$work/status.$number"
exit "$status"
END
} > "$work/job.sh"

name=${log##*/}
options=(--parsable --wait --output=/dev/null --job-name="${name%.log}" --cpus-per-task="$((num_threads > 0 ? num_threads : 1))")
[ -z "$job_name" ] || options+=(--array="$first-$last$([ "$max_jobs_run" -eq 0 ] || echo "%$max_jobs_run")")
[ "$gpu" -eq 0 ] || options+=(--gres="gpu:$gpu")
[ -z "$mem" ] || options+=(--mem="$mem")
# shellcheck disable=SC2086 # a list of options
sbatch "${options[@]}" ${SLURM_OPTIONS-} "$work/job.sh" > "$work/id" 2> "$work/sbatch.log" &
waiting=$!
cancel() {
  [ ! -s "$work/id" ] || scancel "$(head -n 1 "$work/id" | cut -d ';' -f 1)" || true
  kill "$waiting" 2> /dev/null || true
  exit "$1"
}
trap 'cancel 130' INT
trap 'cancel 143' TERM HUP

count_finished() { find "$work" -name 'status.*' ! -name '*.tmp' | wc -l; }
[ -n "$job_name" ] || shown_bytes=$(log_size)
last_progress=$SECONDS
while kill -0 "$waiting" 2> /dev/null; do
  if orphaned; then cancel 143; fi
  if [ -z "$job_name" ]; then
    show_new
  elif [ "$((SECONDS - last_progress))" -ge 10 ]; then
    last_progress=$SECONDS
    show_progress "$(count_finished)"
  fi
  sleep 0.5
done
submitted=0
wait "$waiting" || submitted=$?
if [ ! -s "$work/id" ]; then
  jobs_error "sbatch refused the job: $(head -n 3 "$work/sbatch.log")"
fi
# A shared disk may show the last files late.
patience=$((submitted == 0 ? 10 : 2))
while [ "$(count_finished)" -lt "$((last - first + 1))" ] && [ "$patience" -gt 0 ]; do
  patience=$((patience - 1))
  sleep 0.5
done
[ -n "$job_name" ] || show_new
failed=0
for ((number = first; number <= last; number++)); do
  status=$(cat "$work/status.$number" 2> /dev/null || echo "unknown: Slurm ended it (time, memory, cancelled)")
  if [ "$status" != 0 ]; then
    failed=1
    touch "$(log_of "$number")"
    report_failure "$number" "$status"
  fi
done
exit "$failed"
