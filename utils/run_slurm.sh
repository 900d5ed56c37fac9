#!/usr/bin/env bash
# Runs jobs through Slurm, with run.pl's command line: run_slurm.sh [options] JOB=1:nj log/x.JOB.log command … JOB …
# The jobs become one array; the log's folder must be on a disk that the nodes share. Further options for sbatch (partition,
# account, time) come from $SLURM_OPTIONS. A task that Slurm ends and queues again (node down, preempted) runs its command again.
set -eo pipefail # not -u: bash before 4.4 takes an empty array for an unset one
utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=utils/jobs.sh
. "$utils/jobs.sh"
shopt -s nullglob

parse_jobs "$@"
command -v sbatch > /dev/null || jobs_error "there is no sbatch on this machine; --cmd-backend local runs the jobs here"
folder=$(cd "$(dirname "$log")" && pwd) name=${log##*/}
work=$(mktemp -d "$folder/.$name.slurm.XXXXXX")

# The script runs on the node. A task that Slurm kills leaves no status file, which says so.
{
  printf '#!/usr/bin/env bash\n. %q\n' "$utils/jobs.sh"
  declare -p job_name first last log command
  printf 'cd %q || exit 1\nwork=%q threads=%q\n' "$PWD" "$work" "$num_threads"
  cat << 'END'
number=$first # where this is no array, $SLURM_ARRAY_TASK_ID would be that of a job which has started run_slurm.sh
[ -z "$job_name" ] || number=$SLURM_ARRAY_TASK_ID command=("${command[@]//"$job_name"/$SLURM_ARRAY_TASK_ID}")
file=$(log_of "$number")
if [ "$threads" -gt 0 ] || [ "$last" -gt "$first" ]; then export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}; fi
rm -f "$work/status.$number" # queued again
touch "$work/begun.$number"
trap 'exit 143' TERM # Slurm ends the task: wait for the command, which may be saving its state; no status
log_begin "$file" "${command[@]}"
printf '# Slurm job %s on %s\n' "$SLURM_JOB_ID" "${SLURMD_NODENAME:-$HOSTNAME}" >> "$file"
SECONDS=0 status=0
"${command[@]}" >> "$file" 2>&1 < /dev/null || status=$?
log_end "$file" "$status" "$SECONDS"
echo "$status" > "$work/.status.$number" && mv "$work/.status.$number" "$work/status.$number"
exit "$status"
END
} > "$work/job.sh"

# What Slurm itself has to say (time limit, memory, requeued) goes to the task's log.
output=${log//%/%%}
[ -z "$job_name" ] || output=${output//"$job_name"/%a}
[[ $output == /* ]] || output=${PWD//%/%%}/$output
job_label=${name%.log} job_label=${job_label%".$job_name"}
options=(--parsable --wait --requeue --output="$output" --open-mode=append --job-name="${job_label:-jobs}"
  --cpus-per-task="$((num_threads > 0 ? num_threads : 1))")
[ -z "$job_name" ] || options+=(--array="$first-$last$([ "$max_jobs_run" -eq 0 ] || echo "%$max_jobs_run")")
[ "$gpu" -eq 0 ] || options+=(--gres="gpu:$gpu")
[ -z "$mem" ] || options+=(--mem="$mem")

# Whatever has become of an earlier run of the same jobs, no second job writes what a living one is writing.
earlier=() queue="" after=""
for file in "$folder/.$name".slurm.*/id; do
  [ "${#earlier[@]}" -gt 0 ] || queue=" $(squeue --noheader --user="$(id -un)" --format=%F | tr '\n' ' ')"
  earlier+=("${file%/id}")
  id=$(cut -d ';' -f 1 "$file")
  if [[ $queue == *" $id "* ]]; then
    echo "run_slurm.sh: waiting for Slurm job $id of an earlier run of the same jobs ($name) to end; scancel $id ends it" >&2
    after=$after:$id
  fi
done
[ -z "$after" ] || options+=(--dependency="afterany$after")

read -r -d '' -a given <<< "${SLURM_OPTIONS-}" || true # words, not file names: --nodelist=n[1-4]
sbatch "${options[@]}" "${given[@]}" "$work/job.sh" > "$work/id" 2> "$work/sbatch.log" &
waiting=$!
waits() { kill -0 "$waiting" 2> /dev/null; }
cancel() { # the folder stays: another run then waits until the tasks are gone
  local tries
  for ((tries = 0; tries < 40; tries++)); do # sbatch may be handing the jobs in
    if [ -s "$work/id" ] || ! waits; then break; fi
    sleep 0.25
  done
  kill "$waiting" 2> /dev/null || true
  if [ -s "$work/id" ]; then scancel "$(cut -d ';' -f 1 "$work/id")" || true; else rm -rf "$work"; fi
  exit "$1"
}
trap 'cancel 130' INT
trap 'cancel 143' TERM HUP

declare -A status_of
failed=0
read_statuses() { # reports a failure when it happens; what has not begun then need not begin
  local file number status
  for file in "$work"/status.*; do
    number=${file##*.}
    [ -z "${status_of[$number]}" ] || continue
    read -r status < "$file" || continue
    status_of[$number]=$status
    [ "$status" != 0 ] || continue
    [ -n "$job_name" ] || show_new
    report_failure "$number" "$status"
    [ "$failed" -ne 0 ] || [ "$first" = "$last" ] || scancel --state=PENDING "$(cut -d ';' -f 1 "$work/id")" || true
    failed=1
  done
}

[ -n "$job_name" ] || shown_bytes=$(log_size)
jobs=$((last - first + 1)) polls=0 last_progress=$SECONDS
# sbatch asks Slurm ever more rarely, about once a minute in the end; the status files say it earlier.
while waits && [ "${#status_of[@]}" -lt "$jobs" ]; do
  if orphaned; then cancel 143; fi
  read_statuses
  if [ -z "$job_name" ]; then
    show_new
  elif [ "$((SECONDS - last_progress))" -ge 10 ]; then
    last_progress=$SECONDS
    show_progress "${#status_of[@]}"
  fi
  polls=$((polls + 1))
  if [ "$polls" -lt 40 ]; then sleep 0.25; else sleep 1; fi
done
submitted=0
! waits || kill "$waiting" # all have a status
wait "$waiting" 2> /dev/null || submitted=$?
if [ ! -s "$work/id" ]; then
  reason=$(head -n 3 "$work/sbatch.log")
  [[ $reason != *"array specification"* ]] || reason="$reason; MaxArraySize (scontrol show config) is under $last"
  rm -rf "$work"
  jobs_error "sbatch refused the job: $reason"
fi
# A shared disk may show the last files late.
for ((patience = submitted == 0 ? 20 : 4; patience > 0; patience--)); do
  read_statuses
  [ "${#status_of[@]}" -lt "$jobs" ] || break
  sleep 0.25
done
[ -n "$job_name" ] || show_new

# Those without a status, from Slurm's own.
id=$(cut -d ';' -f 1 "$work/id") idle=""
for ((number = first; number <= last; number++)); do
  [ -z "${status_of[$number]}" ] || continue
  if [ ! -e "$work/begun.$number" ]; then
    idle="$idle $number"
    continue
  fi
  touch "$(log_of "$number")"
  state=$(squeue --noheader --states=all --jobs="$id${job_name:+_$number}" --format=%T 2> /dev/null || true)
  report_failure "$number" "unknown: Slurm ended it (${state:-time, memory, cancelled})"
  failed=1
done
if [ -n "$idle" ] && [ "$failed" -ne 0 ]; then
  echo "run_slurm.sh: not begun after that:$idle" >&2
elif [ -n "$idle" ]; then
  failed=1
  state=$(squeue --noheader --states=all --jobs="$id" --format=%T 2> /dev/null | sort -u | tr '\n' ' ' || true)
  echo "run_slurm.sh: job$idle of $name: ended by Slurm before it began (${state:-state unknown }job $id)." \
    "Can the nodes write to $folder?" >&2
fi
rm -rf "$work" "${earlier[@]}"
exit "$failed"
