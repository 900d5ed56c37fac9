# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this use the variables
#
# What utils/run_local.sh and utils/run_slurm.sh share: run.pl's command line, its log files, progress. To be sourced.

max_jobs_run=0 # 0: as many as the back end likes
mem=""
gpu=0
num_threads=0
jobs_usage="usage: ${0##*/} [--max-jobs-run N] [--num-threads N] [--gpu N] [--mem 4G] [JOB=1:nj] LOG COMMAND [ARGUMENT…]
  Runs COMMAND for JOB = 1 … nj, with JOB in LOG and in the arguments replaced by the number. Without JOB=…: once, and what
  the command prints is shown as well. Status 0 if all succeed; otherwise says which failed and shows the end of its log."

jobs_error() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Sets the options above, job_name (empty: a single job), first, last, log, command.
parse_jobs() {
  job_name="" first=1 last=1
  while [ $# -gt 0 ]; do
    case $1 in
      --max-jobs-run | --num-threads | --gpu)
        [[ ${2-} =~ ^[0-9]+$ ]] || jobs_error "$1 needs a whole number, not '${2-}'"
        case $1 in --max-jobs-run) max_jobs_run=$2 ;; --gpu) gpu=$2 ;; *) num_threads=$2 ;; esac
        shift 2
        ;;
      --mem)
        [ $# -ge 2 ] || jobs_error "--mem needs a value, as in --mem 4G"
        mem=$2
        shift 2
        ;;
      -h | --help) printf '%s\n' "$jobs_usage"; exit 0 ;;
      -*) jobs_error "unknown option $1
$jobs_usage" ;;
      *) break ;;
    esac
  done
  if [[ ${1-} =~ ^([A-Za-z_]+)=([0-9]+)(:([0-9]+))?$ ]]; then
    job_name=${BASH_REMATCH[1]} first=${BASH_REMATCH[2]} last=${BASH_REMATCH[4]:-${BASH_REMATCH[2]}}
    shift
    if [ "$first" -lt 1 ] || [ "$last" -lt "$first" ]; then
      jobs_error "$job_name=$first:$last is not a range of numbers from 1 up"
    fi
  fi
  [ $# -ge 2 ] || jobs_error "a log file and a command are needed
$jobs_usage"
  log=$1
  shift
  command=("$@")
  [ -z "$job_name" ] || [ "$first" = "$last" ] || [[ $log == *"$job_name"* ]] ||
    jobs_error "$log: put $job_name in the log's name, or all jobs write to one file"
  mkdir -p "$(dirname "$log")"
}

# True if pipeline.sh has started this script and is gone, killed without being able to say so. (It may still be there as a
# zombie, so the question is who the parent is now.)
orphaned() {
  local parent
  [ -n "$PIPELINE_PID" ] || return 1
  if [ -r "/proc/$$/stat" ]; then
    read -r _ _ _ parent _ < "/proc/$$/stat"
    [ "$parent" != "$PPID" ]
  else
    ! kill -0 "$PPID" 2> /dev/null
  fi
}

log_of() { if [ -n "$job_name" ]; then printf '%s' "${log//"$job_name"/$1}"; else printf '%s' "$log"; fi; }

# Logs are appended to: what an interrupted run has printed stays above.
log_begin() { # LOG COMMAND…
  local file=$1
  shift
  printf '# %s\n# Started at %s\n#\n' "$(printf '%q ' "$@")" "$(date '+%F %T')" >> "$file"
}

log_end() { # LOG STATUS SECONDS
  printf '# Ended (code %s) at %s, elapsed time %s s\n' "$2" "$(date '+%F %T')" "$3" >> "$1"
}

log_size() { if [ -f "$log" ]; then wc -c < "$log"; else echo 0; fi; }

# Prints what has been added to a single job's log since the last call, without the header's lines.
shown_bytes=0
show_new() {
  local size
  size=$(log_size)
  [ "$size" -gt "$shown_bytes" ] || return 0
  tail -c "+$((shown_bytes + 1))" "$log" | head -c "$((size - shown_bytes))" | grep -v '^#' >&2 || true
  shown_bytes=$size
}

# One line for all jobs, added up from the last progress line (`dump: 120/210 utt …, 00:00:09 left`) of every log.
show_progress() { # FINISHED
  local number
  for ((number = first; number <= last; number++)); do
    tail -n 5 "$(log_of "$number")" 2> /dev/null | tr '\r' '\n' | grep -E '[0-9]+/[0-9]+ ' | tail -n 1 || true
  done | awk -v jobs="$((last - first + 1))" -v finished="$1" -v name="${log##*/}" '
    match($0, /[0-9]+\/[0-9]+ [a-z]+/) {
      split(substr($0, RSTART, RLENGTH), part, /[\/ ]/)
      done += part[1]; total += part[2]; unit = part[3]
      if (match($0, /[0-9:]+ left/)) { time = substr($0, RSTART, RLENGTH - 5); if (time > left) left = time }
    }
    END {
      line = sprintf("%s: %d of %d jobs finished", name, finished, jobs)
      if (total) line = line sprintf(", %d/%d %s (%d %%)", done, total, unit, 100 * done / total)
      if (left != "") line = line ", " left " left"
      print line
    }' >&2
}

report_failure() { # NUMBER STATUS
  local file
  file=$(log_of "$1")
  if [ -z "$job_name" ]; then # its output has been shown
    printf '%s: failed with status %s; log: %s\n' "${0##*/}" "$2" "$file" >&2
    return
  fi
  printf '%s: job %s of %s:%s failed with status %s; the end of %s:\n' "${0##*/}" "$1" "$first" "$last" "$2" "$file" >&2
  awk '/^# Started/ { n = 0 } !/^#/ { line[n++] = $0 }
    END { for (i = n > 15 ? n - 15 : 0; i < n; i++) print "  | " line[i] }' "$file" >&2
}
