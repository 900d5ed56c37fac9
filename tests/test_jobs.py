"""utils/run_local.sh, run_slurm.sh and cmd.sh (run.pl's contract), utils/parse_options.sh, and shellcheck over every script."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UTILS = ROOT / "utils"
# Runs the script it is given as an array, one task after another, as sbatch --wait would have it run on nodes. $FAKE_LOSE: a task
# that does not begin; $FAKE_KILL: one that Slurm ends; $FAKE_LINGER: seconds until Slurm is asked again whether all is over.
SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FAKE_SLURM/submitted"
for word; do
  case $word in --array=*) range=${word#*=} ;; --cpus-per-task=*) export SLURM_CPUS_PER_TASK=${word#*=} ;; esac
done
script=${!#}
[ -z "$FAKE_REFUSE" ] || { echo "sbatch: error: $FAKE_REFUSE" >&2; exit 1; }
echo "42;cluster"
export SLURM_JOB_ID=42
[ -n "$range" ] || { bash "$script"; exit; }
range=${range%%%*} status=0
for ((task = ${range%%-*}; task <= ${range##*-}; task++)); do
  [ "$task" != "$FAKE_LOSE" ] || { status=1; continue; }
  SLURM_ARRAY_TASK_ID=$task bash "$script" &
  if [ "$task" = "$FAKE_KILL" ]; then sleep 0.5; kill -TERM $!; fi
  wait $! || status=$?
done
[ -z "$FAKE_LINGER" ] || exec sleep "$FAKE_LINGER"
exit $status
"""
# scancel and squeue note how they are called; squeue says what $FAKE_QUEUE says.
NOTE = """#!/usr/bin/env bash
echo "${0##*/} $*" >> "$FAKE_SLURM/asked"
[ "${0##*/}" != squeue ] || echo "$FAKE_QUEUE"
"""


def stand_ins(folder: Path) -> dict[str, str]:
    """Puts sbatch, scancel and squeue there; the environment in which they are found."""
    for name, text in {"sbatch": SBATCH, "scancel": NOTE, "squeue": NOTE}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def bash(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    settings = {"text": True, "capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 120}
    return subprocess.run(["bash", *words], cwd=cwd, env=os.environ | environment, **settings)


@pytest.fixture(params=["run_local.sh", "run_slurm.sh"])
def runner(request, tmp_path):
    """Calls one of the back ends in tmp_path."""
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    environment = stand_ins(slurm) | {"OMP_NUM_THREADS": ""}
    return lambda *words, **more: bash(str(UTILS / request.param), *words, cwd=tmp_path, **environment, **more)


def test_jobs_run_with_their_number_in_log_and_arguments(runner, tmp_path):
    script = 'echo "number $1 of $2 with $OMP_NUM_THREADS threads" > out.$1'
    done = runner("JOB=2:4", "log/x.JOB.log", "bash", "-c", script, "-", "JOB", "a b")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("out.*")) == ["out.2", "out.3", "out.4"]
    assert (tmp_path / "out.3").read_text() == "number 3 of a b with 1 threads\n"
    log = (tmp_path / "log/x.3.log").read_text()
    assert "# bash -c" in log and "# Started at " in log and "# Ended (code 0) at " in log


def test_a_failing_job_is_named_with_the_end_of_its_log(runner, tmp_path):
    script = 'echo "earlier line"; echo "what happened in $1"; [ "$1" != 2 ] || exit 5'
    done = runner("JOB=1:3", "log/x.JOB.log", "bash", "-c", script, "-", "JOB")
    assert done.returncode != 0
    assert "job 2 of 1:3 failed with status 5" in done.stderr and "log/x.2.log" in done.stderr
    assert "what happened in 2" in done.stderr and "what happened in 1" not in done.stderr
    assert "# Ended (code 5)" in (tmp_path / "log/x.2.log").read_text()


def test_a_single_job_is_shown_and_logs_are_kept_on_a_second_run(runner, tmp_path):
    done = runner("log/train.log", "bash", "-c", "echo first; echo second >&2")
    assert done.returncode == 0 and done.stderr.splitlines() == ["first", "second"]
    done = runner("log/train.log", "bash", "-c", "echo third; exit 3")
    assert done.returncode != 0 and "first" not in done.stderr and "third" in done.stderr
    assert "log/train.log" in done.stderr and "status 3" in done.stderr
    log = (tmp_path / "log/train.log").read_text()
    assert log.index("first") < log.index("third")


def test_a_command_that_cannot_be_found_fails(runner):
    done = runner("JOB=1:1", "log/x.JOB.log", "no_such_command_anywhere")
    assert done.returncode != 0 and "no_such_command_anywhere" in done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["JOB=1:2", "log/x.log", "true"], "put JOB in the log's name"),
        (["JOB=3:2", "log/x.JOB.log", "true"], "not a range"),
        (["JOB=0:2", "log/x.JOB.log", "true"], "not a range"),
        (["--max-jobs", "2", "log/x.log", "true"], "unknown option --max-jobs"),
        (["--gpu", "many", "log/x.log", "true"], "--gpu needs a whole number"),
        (["log/x.log"], "a log file and a command are needed"),
    ],
)
def test_wrong_use_is_one_message(runner, words, message):
    done = runner(*words)
    assert done.returncode == 1 and message in done.stderr


def test_local_runs_at_most_so_many_at_once(tmp_path):
    """Each job waits for a companion, at most 5 s, and writes down how many run then."""
    script = """touch running.$1
    for poll in $(seq 50); do [ "$(ls running.* | wc -l)" -ge 2 ] && break; sleep 0.1; done
    ls running.* | wc -l >> seen; sleep 0.3; rm running.$1"""
    command = [str(UTILS / "run_local.sh"), "--max-jobs-run", "2", "JOB=1:4", "log/JOB.log", "bash", "-c", script, "-", "JOB"]
    done = bash(*command, cwd=tmp_path)
    assert done.returncode == 0
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 4 and max(seen) == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock on this machine")
def test_local_jobs_with_a_gpu_each_take_them_in_turn(tmp_path):
    """Without it all of them would be on the first one."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '%s\\n' 0 1 2\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    def seen(*options: str, visible: str = "") -> list[str]:
        words = [*options, "JOB=1:4", "log/x.JOB.log", "sh", "-c", "printf '%s' \"$CUDA_VISIBLE_DEVICES\" > gpu.JOB"]
        assert bash(str(UTILS / "run_local.sh"), *words, cwd=tmp_path, PATH=path, CUDA_VISIBLE_DEVICES=visible).returncode == 0
        return [(tmp_path / f"gpu.{job}").read_text() for job in (1, 2, 3, 4)]

    assert seen("--gpu", "1") == ["0", "1", "2", "0"] and seen("--gpu", "1", visible="5,7") == ["5", "7", "5", "7"]
    assert seen() == [""] * 4 and seen("--gpu", "2", visible="5,7") == ["5,7"] * 4


def test_local_waits_for_an_earlier_run_of_the_same_jobs(tmp_path):
    command = [str(UTILS / "run_local.sh"), "log/x.log", "bash", "-c", "sleep 1; echo $PPID >> order"]
    first = subprocess.Popen(["bash", *command], cwd=tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "log/x.log").exists():
        time.sleep(0.02)
    first.kill()  # its job lives on and still writes
    first.wait()
    done = bash(*command, cwd=tmp_path)
    assert done.returncode == 0 and "waiting for an earlier run of the same jobs" in done.stderr
    assert len((tmp_path / "order").read_text().split()) == 2


@pytest.mark.parametrize("lines, shown", [(["dump: 5/10 utt (50 %), 1 utt/s, 00:00:05 left"], "10/20 utt (50 %), 00:00:05 left")])
def test_progress_of_all_jobs_is_added_up(tmp_path, lines, shown):
    for job in (1, 2):
        (tmp_path / f"x.{job}.log").write_text("# Started\n" + "\n".join(lines) + "\n")
    script = f'. {UTILS}/jobs.sh; parse_jobs JOB=1:2 x.JOB.log true; show_progress 1'
    done = bash("-c", script, cwd=tmp_path)
    assert done.stderr.strip() == f"x.JOB.log: 1 of 2 jobs finished, {shown}"


def test_options_for_every_job_come_from_the_environment(tmp_path):
    words = [str(UTILS / "cmd.sh"), "JOB=1:2", "log/x.JOB.log", "bash", "-c", 'echo "$OMP_NUM_THREADS" > out.$1', "-", "JOB"]
    assert bash(*words, cwd=tmp_path, CMD_BACKEND="local", CMD_OPTIONS="--num-threads 7 --max-jobs-run 1").returncode == 0
    assert (tmp_path / "out.2").read_text() == "7\n"
    done = bash(*words, cwd=tmp_path, CMD_OPTIONS="--max-jobs 1")
    assert done.returncode == 1 and "unknown option --max-jobs" in done.stderr


def slurm(tmp_path, *words, **environment):
    environment = stand_ins(tmp_path) | {"CMD_BACKEND": "slurm"} | environment
    return bash(str(UTILS / "cmd.sh"), *words, cwd=tmp_path, **environment)


def test_slurm_gets_the_options(tmp_path):
    options = ["--gpu", "2", "--mem", "4G", "--num-threads", "3", "--max-jobs-run", "5"]
    (tmp_path / "n1").touch()
    done = slurm(tmp_path, *options, "JOB=1:2", "log/10%/x.JOB.log", "true", SLURM_OPTIONS="--time=1:00 n[1]")
    assert done.returncode == 0, done.stderr
    submitted = (tmp_path / "submitted").read_text().splitlines()
    for option in ("--array=1-2%5", "--gres=gpu:2", "--mem=4G", "--cpus-per-task=3", "--wait", "--requeue", "--open-mode=append"):
        assert option in submitted
    assert submitted[-3:-1] == ["--time=1:00", "n[1]"]  # words, no names of files
    assert f"--output={tmp_path}/log/10%%/x.%a.log" in submitted and "--job-name=x" in submitted
    assert not list((tmp_path / "log" / "10%").glob(".*"))


def test_slurm_threads_are_the_cores_of_a_task(tmp_path):
    command = ["bash", "-c", 'echo "$OMP_NUM_THREADS" > out.$1', "-", "JOB"]
    options = {"SLURM_CPUS_PER_TASK": "9", "OMP_NUM_THREADS": "9"}  # of a job that starts these jobs
    assert slurm(tmp_path, "--num-threads", "3", "JOB=1:2", "log/x.JOB.log", *command, **options).returncode == 0
    assert (tmp_path / "out.1").read_text() == (tmp_path / "out.2").read_text() == "3\n"


def test_slurm_within_a_task_of_an_array_runs_a_single_job(tmp_path):
    done = slurm(tmp_path, "log/x.log", "echo", "hello", SLURM_ARRAY_TASK_ID="7")
    assert done.returncode == 0 and done.stderr == "hello\n"


def test_slurm_says_which_task_was_killed(tmp_path):
    script = "echo begun; sleep 1; echo ended"
    done = slurm(tmp_path, "JOB=1:3", "log/x.JOB.log", "bash", "-c", script, FAKE_KILL="2", FAKE_QUEUE="TIMEOUT")
    assert done.returncode == 1 and "job 2 of 1:3 failed with status unknown: Slurm ended it (TIMEOUT)" in done.stderr
    assert "  | ended" in done.stderr  # a command that Slurm ends has time to save its state
    assert "job 1 " not in done.stderr and "job 3 " not in done.stderr
    assert "squeue --noheader --states=all --jobs=42_2 --format=%T" in (tmp_path / "asked").read_text()
    done = slurm(tmp_path, "JOB=1:3", "log/x.JOB.log", "true", FAKE_LOSE="2", FAKE_QUEUE="FAILED")
    assert done.returncode == 1 and "job 2 of x.JOB.log: ended by Slurm before it began (FAILED job 42)" in done.stderr


def test_slurm_says_what_sbatch_refused(tmp_path):
    done = slurm(tmp_path, "JOB=1:3", "log/x.JOB.log", "true", FAKE_REFUSE="Invalid job array specification")
    assert done.returncode == 1 and "refused the job: sbatch: error: Invalid job array" in done.stderr
    assert "MaxArraySize (scontrol show config) is under 3" in done.stderr and not list((tmp_path / "log").iterdir())


def test_slurm_reports_a_failure_at_once_and_begins_no_more(tmp_path):
    script = 'echo "number $1"; [ "$1" != 1 ]'
    done = slurm(tmp_path, "JOB=1:2", "log/x.JOB.log", "bash", "-c", script, "-", "JOB", FAKE_LOSE="2")
    assert done.returncode == 1 and "status 1; the end of log/x.1.log" in done.stderr
    assert "not begun after that: 2\n" in done.stderr
    assert (tmp_path / "asked").read_text() == "scancel --state=PENDING 42\n"


def test_slurm_does_not_wait_for_sbatch_to_ask_again(tmp_path):
    begun = time.monotonic()
    assert slurm(tmp_path, "JOB=1:2", "log/x.JOB.log", "true", FAKE_LINGER="30").returncode == 0
    assert time.monotonic() - begun < 20 and not (tmp_path / "asked").exists()


def test_slurm_stopped_cancels_and_the_next_run_waits_for_what_is_left(tmp_path):
    command = ["bash", str(UTILS / "run_slurm.sh"), "JOB=1:2", "log/x.JOB.log", "sleep", "3"]
    environment = os.environ | stand_ins(tmp_path)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    while not (tmp_path / "log" / "x.1.log").exists():
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 143 and (tmp_path / "asked").read_text() == "scancel 42\n"
    for queue, option in {"41\n42\n": "--dependency=afterany:42", "41\n420": ""}.items():
        done = slurm(tmp_path, "JOB=1:2", "log/x.JOB.log", "true", FAKE_QUEUE=queue)
        assert done.returncode == 0, done.stderr
        dependencies = [word for word in (tmp_path / "submitted").read_text().splitlines() if "dependency" in word]
        assert dependencies == ([option] if option else []) and ("waiting for Slurm job 42" in done.stderr) == bool(option)
        left = list((tmp_path / "log").glob(".x.JOB.log.slurm.*"))
        assert left == []
        if option:  # once more with what a killed run leaves
            (tmp_path / "log" / ".x.JOB.log.slurm.abc").mkdir()
            (tmp_path / "log" / ".x.JOB.log.slurm.abc" / "id").write_text("42;cluster\n")


def test_unknown_back_end_and_missing_sbatch(tmp_path):
    done = bash(str(UTILS / "cmd.sh"), "log/x.log", "true", cwd=tmp_path, CMD_BACKEND="pbs")
    assert done.returncode == 1 and "no back end pbs" in done.stderr
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "mkdir"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    done = bash(str(UTILS / "cmd.sh"), "log/x.log", "true", cwd=tmp_path, CMD_BACKEND="slurm", PATH=str(tmp_path / "bin"))
    assert done.returncode == 1 and "there is no sbatch on this machine" in done.stderr


SCRIPT = """
nj=4 skip=false tag= help_message="usage: mine [options] data"
. {utils}/parse_options.sh
printf '%s|' "$nj" "$skip" "$tag" "$@"
"""


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "4|false||"),
        (["--nj", "8", "--skip", "true", "data", "--nj", "1"], "8|true||data|--nj|1|"),
        (["--tag", "a b", "--", "--nj"], "4|false|a b|--nj|"),
        (["--nj", "-1", "-1"], "-1|false||-1|"),
    ],
)
def test_parse_options_as_kaldi_scripts_use_it(tmp_path, words, expected):
    (tmp_path / "mine").write_text(SCRIPT.format(utils=UTILS))
    done = bash("mine", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["--jn", "8"], "unknown option --jn"),
        (["--skip", "yes"], "must be true or false"),
        (["--nj"], "needs a value"),
        (["--nj=8"], "--nj 8"),
        (["--some-conf.key", "1"], "unknown option --some-conf.key"),
        (["--nj; touch broken", "1"], "unknown option"),
    ],
)
def test_parse_options_refuses(tmp_path, words, message):
    (tmp_path / "mine").write_text(SCRIPT.format(utils=UTILS))
    done = bash("mine", *words, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""
    assert not (tmp_path / "broken").exists()
    assert "usage: mine" in bash("mine", "--help", cwd=tmp_path).stdout


def scripts() -> list[Path]:
    folders = ("utils", "tools", "tests", "egs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.sh")] + [ROOT / ".ci" / "run"]
    ours = [path.relative_to(ROOT) for path in found]
    # Not what the recipes have made and what is installed.
    return sorted(path for path in ours if not {"exp", "venv", "downloads", "data", "dump"} & set(path.parts))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck on this machine")
def test_every_script_passes_shellcheck():
    done = subprocess.run(["shellcheck", "-x", "-P", str(ROOT), *map(str, scripts())], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_executable_bash_and_short_recipes():
    for path in scripts():
        text = (ROOT / path).read_text()
        sourced = text.startswith("# shellcheck shell=bash")
        assert sourced or text.startswith("#!/usr/bin/env bash\n"), path
        assert sourced or (ROOT / path).stat().st_mode & stat.S_IXUSR, path
        assert "\r" not in text and max(map(len, text.splitlines())) <= 130, path
        assert path.name != "run.sh" or len(text.splitlines()) <= 60, path
