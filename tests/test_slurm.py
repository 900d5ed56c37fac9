"""utils/run_slurm.sh on a real Slurm, which these tests start and stop: features and hypotheses are those of this process,
also where Slurm ends a task half-way.

To run them, as root: `apt-get install slurm-wlm munge` (no service needs to run, nothing of the machine's own Slurm is touched),
then `tools/test.sh --slow tests/test_slurm.py`; about a minute. What the back end says and how it calls Slurm is tested without
one in test_jobs.py.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterable

import numpy as np
import pytest
import slurm_cluster
import soundfile
import yaml
from slurm_cluster import wait_for

ROOT = Path(__file__).resolve().parents[1]
UTTS = [f"{speaker}-{number}" for speaker in "abc" for number in (1, 2, 3)]  # three jobs of three utterances
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def possible():
    if reason := slurm_cluster.missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def cluster(possible):
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm_cluster.slurm_cluster(Path(folder)) as running:
        yield running


class Jobs:
    """cmd.sh through Slurm, in a folder with blanks in its name. `start` and `run` take cmd.sh's command line."""

    def __init__(self, folder: Path, cluster):
        self.folder, self.cluster = folder, cluster
        # $PIPELINE_PID: where these tests are killed, what they have started ends too.
        own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PIPELINE_PID": str(os.getpid())}
        self.environment = cluster.environment | own
        folder.mkdir()

    def start(self, *words: str) -> subprocess.Popen:
        command, environment = ["bash", str(ROOT / "utils" / "cmd.sh"), *words], self.environment | {"CMD_BACKEND": "slurm"}
        with open(self.folder / "screen", "w") as output:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=output, start_new_session=True)

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """Status and what was on the screen."""
        return process.wait(timeout=600), (self.folder / "screen").read_text()

    def run(self, *words: str) -> tuple[int, str]:
        return self.end(self.start(*words))

    def verb(self, verb: str, log: str, nj: int, *words: str) -> subprocess.Popen:
        """The command line of stages 1 and 5."""
        command = [sys.executable, "-m", f"steermoe.bin.{verb}", *words, "--nj", str(nj), "--job", "JOB"]
        return self.start(f"JOB=1:{nj}", log, *command)

    def here(self, verb: str, nj: int, jobs: Iterable[int], *words: str) -> None:
        """In this process, whose folder is `folder`; job 0 joins what the others have left."""
        for job in jobs:
            importlib.import_module(f"steermoe.bin.{verb}").main([*words, "--nj", str(nj), "--job", str(job)])

    def id_of(self, log: str) -> str:
        """The job of the array that now runs."""
        files = f".{Path(log).name}.slurm.*/id"
        folder = self.folder / Path(log).parent
        wait_for(lambda: any(file.read_text().strip() for file in folder.glob(files)), what="sbatch")
        return next(folder.glob(files)).read_text().split(";")[0].strip()


STARTER = """
import pathlib, sys, time
from slurm_cluster import slurm_cluster, wait_for
with slurm_cluster(pathlib.Path(sys.argv[1])) as cluster:
    cluster.ask("sbatch", "--output=/dev/null", "--wrap=sleep 600")
    wait_for(lambda: "RUNNING" in cluster.states().values())
    print("running", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_when_the_tests_are_killed(possible):
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        there = folder.encode()  # in the environment of each
        running = lambda: [path for path in Path("/proc").glob("[0-9]*/environ") if there in content(path)]  # noqa: E731
        command, environment = [sys.executable, "-c", STARTER, folder], os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == "running\n"
            assert len(running()) >= 6  # three daemons, the one that watches the task, the task and its sleep
            process.kill()
        wait_for(lambda: not running(), 10, "the daemons and the task to end")


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.fixture
def jobs(cluster, tmp_path, monkeypatch):
    made = Jobs(tmp_path / "a folder", cluster)
    monkeypatch.chdir(made.folder)
    return made


def shell(script: str) -> list[str]:
    return ["bash", "-c", script, "-", "JOB"]


def test_tasks_run_at_the_same_time_and_only_so_many(jobs):
    script = 'touch "on.$1"; sleep 1; ls | grep -c ^on >> seen; sleep 1; rm "on.$1"; echo "number $1, $OMP_NUM_THREADS threads"'
    status, screen = jobs.run("--max-jobs-run", "2", "--num-threads", "2", "JOB=1:3", "log/x.JOB.log", *shell(script))
    assert status == 0 and "failed" not in screen
    assert max(map(int, (jobs.folder / "seen").read_text().split())) == 2
    text = (jobs.folder / "log/x.3.log").read_text()
    assert "number 3, 2 threads" in text and "# Slurm job " in text and "# Ended (code 0)" in text
    assert sorted(path.name for path in (jobs.folder / "log").iterdir()) == ["x.1.log", "x.2.log", "x.3.log"]


def test_a_failing_task_fails_the_stage_names_its_log_and_no_more_begin(jobs):
    script = 'echo "what happened in $1"; [ "$1" != 1 ] || kill -9 $$; sleep 1'
    begun = time.monotonic()
    status, screen = jobs.run("--max-jobs-run", "1", "JOB=1:9", "log/x.JOB.log", *shell(script))
    assert status == 1 and "job 1 of 1:9 failed with status 137; the end of log/x.1.log" in screen
    assert "| what happened in 1" in screen and "not begun after that: " in screen and " 8 9\n" in screen
    assert time.monotonic() - begun < 30


def test_a_task_that_cannot_be_is_refused_with_slurms_reason(jobs):
    status, screen = jobs.run("JOB=1:200", "log/x.JOB.log", "true")
    assert status == 1 and "sbatch refused the job" in screen and "MaxArraySize (scontrol show config) is under 200" in screen
    status, screen = jobs.run("--gpu", "1", "log/x.log", "true")
    assert status == 1 and "sbatch refused the job" in screen and "gres" in screen


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_cancels_the_tasks(jobs, number, status):
    process = jobs.start("JOB=1:2", "log/x.JOB.log", *shell('echo begun >> begun; sleep 100'))
    wait_for((jobs.folder / "begun").exists)
    os.killpg(process.pid, number)  # as Ctrl-C does: to all that run in the foreground
    assert jobs.end(process)[0] == status
    wait_for(lambda: not jobs.cluster.states(), 20, "the tasks to end")


def test_a_run_after_one_that_was_killed_waits_for_its_tasks(jobs):
    script = 'echo "begin $1" >> order; sleep 3; echo "end $1" >> order'
    process = jobs.start("JOB=1:2", "log/x.JOB.log", *shell(script))
    wait_for(lambda: (jobs.folder / "order").exists())
    os.killpg(process.pid, signal.SIGKILL)  # also of sbatch, which would go on waiting
    process.wait()
    status, screen = jobs.run("JOB=1:2", "log/x.JOB.log", *shell(script))
    assert status == 0 and "waiting for Slurm job" in screen
    words = [line.split()[0] for line in (jobs.folder / "order").read_text().splitlines()]
    assert words == ["begin", "begin", "end", "end"] * 2
    assert not list((jobs.folder / "log").glob(".*"))


@pytest.fixture
def recipe(jobs, tiny_bases, tiny_config):
    """Data whose audio comes from commands: each notes that it was read, and that of b-2 waits while there is a file `gate`."""
    from steermoe.checkpoint import save_adapter
    from steermoe.model import SteerMoE

    folder, rng = jobs.folder, np.random.default_rng(0)
    data = folder / "data"
    data.mkdir()
    for utt in UTTS:
        soundfile.write(data / f"{utt}.wav", rng.normal(0, 0.1, 16000), 16000)
    wait = {"b-2": "while [ -e gate ]; do sleep 0.1; done; "}
    rows = {
        "wav.scp": {utt: f"echo {utt} >> read; {wait.get(utt, '')}cat data/{utt}.wav |" for utt in UTTS},
        "text": dict.fromkeys(UTTS, "one two"),
        "utt2spk": {utt: utt[0] for utt in UTTS},
        "spk2utt": {speaker: f"{speaker}-1 {speaker}-2 {speaker}-3" for speaker in "abc"},
        "utt2dur": dict.fromkeys(UTTS, 1.0),
    }
    for name, mapping in rows.items():
        (data / name).write_text("".join(f"{key} {value}\n" for key, value in mapping.items()))
    (folder / "train.yaml").write_text(yaml.safe_dump({"encoder_conf": {"model": str(tiny_bases / "whisper")}}))
    save_adapter(folder / "exp" / "adapter.safetensors", SteerMoE.from_config(tiny_config), tiny_config, 1, {})
    return jobs


def test_dump_with_a_task_requeued_half_way_equals_the_local_one(recipe):
    words = ("--config", "train.yaml", "--data", "data", "--allow-pipes", "true", "--out")
    recipe.here("dump", 3, (1, 2, 3, 0), *words, "local")
    read = recipe.folder / "read"
    read.write_text("")
    (recipe.folder / "gate").touch()
    process = recipe.verb("dump", "dump/log/dump.JOB.log", 3, *words, "dump")
    wait_for(lambda: "b-2" in read.read_text(), 100, "the second utterance of job 2")
    task = f"{recipe.id_of('dump/log/dump.JOB.log')}_2"
    runs = lambda: subprocess.run(["pgrep", "-f", r"slurmstepd: \["], stdout=subprocess.DEVNULL).returncode == 0  # noqa: E731
    assert runs()
    recipe.cluster.ask("scontrol", "requeue", task)
    wait_for(lambda: recipe.cluster.states().get(task) == "PENDING", what="the task to be queued again")
    (recipe.folder / "gate").unlink()
    # Slurm itself would wait two minutes, since it does not start a task anew that has not quite ended.
    wait_for(lambda: not runs(), what="the task to be gone")
    recipe.cluster.ask("scontrol", "update", f"JobId={task}", "StartTime=now")
    status, screen = recipe.end(process)
    assert status == 0, screen
    assert sorted(read.read_text().split()) == sorted([*UTTS, "b-2"])  # b-1 was there already, b-2 was begun twice
    recipe.here("dump", 3, [0], *words, "dump")
    for name in ("feats.1.ark", "feats.2.ark", "feats.3.ark", "utt2num_frames"):
        assert (recipe.folder / "dump" / name).read_bytes() == (recipe.folder / "local" / name).read_bytes()
    index = (recipe.folder / "dump" / "feats.scp").read_text()
    assert index.replace("dump/", "local/") == (recipe.folder / "local" / "feats.scp").read_text()
    assert "DUE TO JOB REQUEUE" in (recipe.folder / "dump/log/dump.2.log").read_text()


def test_decode_with_a_task_cancelled_half_way_and_run_again_equals_the_local_one(recipe, tiny_bases):
    from steermoe.data.ark import ArkWriter

    folder, rng, entries = recipe.folder, np.random.default_rng(1), []
    with ArkWriter(folder / "all.ark", 0) as writer:
        for index, utt in enumerate(UTTS):
            frames = 100 - 5 * index  # decoded in this order, two jobs in turn: the second has b-3 as its third
            offset = writer.write(utt, rng.normal(0, 0.5, (frames, 80)).astype(np.float32))
            entry = {"utt": utt, "spk": utt[0], "text": "one two", "feats": f"all.ark:{offset}", "num_frames": frames}
            entries.append(entry | {"duration": frames / 100, "num_tokens": 7})
    gate = folder / "gate.ark"
    entries[5]["feats"] = entries[5]["feats"].replace("all.ark", "gate.ark")
    (folder / "data.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    gate.symlink_to("all.ark")
    words = ("--exp", "exp", "--data", "data.jsonl", "--decode-conf.max-batch", "1", "--out")
    recipe.here("decode", 2, (1, 2, 0), *words, "local")

    gate.unlink()
    os.mkfifo(gate)  # whoever opens it waits
    process = recipe.verb("decode", "slurm/log/decode.JOB.log", 2, *words, "slurm")
    journals = lambda: [path.read_text() for path in sorted((folder / "slurm").glob(".hyp.*.part"))]  # noqa: E731
    wait_for(lambda: [text.count("\n") for text in journals()] == [5, 2], 100, "two batches of job 2")
    before = journals()
    recipe.cluster.ask("scancel", f"{recipe.id_of('slurm/log/decode.JOB.log')}_2")
    status, screen = recipe.end(process)
    assert status == 1 and "job 2 of 1:2 failed with status unknown: Slurm ended it (CANCELLED)" in screen
    assert "slurm/log/decode.2.log" in screen and "job 1 of" not in screen
    assert journals() == before

    gate.unlink()
    gate.symlink_to("all.ark")
    status, screen = recipe.end(recipe.verb("decode", "slurm/log/decode.JOB.log", 2, *words, "slurm"))
    assert status == 0, screen
    after = journals()
    assert after[0] == before[0] and after[1].startswith(before[1]) and after[1].count("\n") == 4
    recipe.here("decode", 2, [0], *words, "slurm")
    for name in ("hyp.trn", "ref.trn", "text"):
        assert (folder / "slurm" / name).read_bytes() == (folder / "local" / name).read_bytes()
    assert len((folder / "slurm" / "hyp.trn").read_text().splitlines()) == len(UTTS)


def test_a_recipe_runs_all_its_stages_through_slurm(cluster, tmp_path):
    """With stand-ins for the verbs: what the driver submits."""
    from test_pipeline import Recipe

    recipe = Recipe(tmp_path / "a folder")
    recipe.environment |= cluster.environment | {key: recipe.environment[key] for key in ("PYTHON", "REAL_PYTHON", "FAKE")}
    options = ("--cmd-backend", "slurm", "--nj", "3", "--decode-nj", "2")
    status, _, err = recipe.run(*options, FAKE_FAIL="decode")
    assert status == 1 and "of 1:2 failed with status 7; the end of exp/whisper/decode_test_default/log/decode." in err
    assert "stage 5 (decode) failed" in err
    status, _, err = recipe.run(*options)
    assert status == 0, err
    assert "# Slurm job " in (recipe.folder / "exp/whisper/log/train.log").read_text()
    assert "# Slurm job " in (recipe.folder / "dump/whisper_feats/train/log/dump.3.log").read_text()
