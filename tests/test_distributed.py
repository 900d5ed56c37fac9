"""Training by several processes (gloo): as one process trains, stopped and resumed by any number of them, ended by any death.

The quick tests share one torchrun (`trained`); the slow ones are those of the command itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import distributed_worker
import tiny
from steermoe.bin.train import main
from steermoe.checkpoint import load_resume
from steermoe.data.sampler import epoch_batches, share
from steermoe.errors import UserError
from steermoe.train import distributed

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
MINUTES = 20  # on a machine that others keep busy
TRAIN = ("-m", "steermoe.bin.train", "--config", "train.yaml", "--train", "train.jsonl", "--dev", "dev.jsonl", "--exp")


def start(folder: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*TORCHRUN, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bases):
    folder = tmp_path_factory.mktemp("distributed")
    config = {
        "encoder_conf": {"model": str(tiny_bases / "whisper"), "dtype": "float32"},
        "steering_conf": {"num_experts": 4},
        "llm_conf": {"model": str(tiny_bases / "llm"), "dtype": "float32"},
        "train_conf": {"max_steps": 6, "valid_steps": 2, "save_steps": 1, "batch_frames": 600, "max_batch": 4, "accum_grad": 2},
        "optim_conf": {"warmup_steps": 2},
        "decode_conf": {"max_tokens": 8},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    tiny.make_dataset(folder, [50, 80, 123, 200, 150, 60, 70, 90, 590])  # the last is alone in its batch
    tiny.make_dataset(folder, [70, 90, 500], 4, "dev")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder where distributed_worker.py has run in two processes, with the same training in this process as `one`, and what
    it leaves to another number of processes. What torchrun has said is in the file `said`.
    """
    distributed_worker.trainer(folder, "one").run()
    begun = distributed_worker.trainer(folder, "one_then_two")
    begun.conf.max_steps = 3
    begun.run()
    process = start(folder, distributed_worker.__file__, str(folder))
    _, err = process.communicate(timeout=MINUTES * 60)
    assert (folder / "dies").is_dir() and process.returncode != 0, err  # its last training, of which one process dies
    assert err.count("step 6: train loss") == 3 and err.count("stopped by SIGTERM; step 4 is saved") == 1  # rank 0 alone speaks
    (folder / "said").write_text(err)
    distributed_worker.trainer(folder, "two_then_one").run()
    return folder


def lines(folder: Path, exp: str) -> list[dict]:
    return [json.loads(line) for line in (folder / exp / "log" / "train.jsonl").open()]


@pytest.mark.parametrize("exp", ["two", "one_then_two", "two_then_one"])
def test_any_number_of_processes_trains_as_one_does(trained, exp):
    wanted, found = lines(trained, "one"), lines(trained, exp)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6] and not any(line["skipped"] for line in found)
    for one, other in zip(wanted, found):
        assert one["epoch"] == other["epoch"] and other["accuracy"] == pytest.approx(one["accuracy"])
        for name in {"loss", "grad_norm", "dev_loss"} & one.keys() & other.keys():
            assert other[name] == pytest.approx(one[name], rel=1e-5)
    one, other = (load_file(trained / name / "checkpoints" / "last.safetensors") for name in ("one", exp))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=2e-5, err_msg=name)


def test_what_is_not_finite_in_one_process_is_skipped_in_all(trained):
    assert [line["skipped"] for line in lines(trained, "broken")] == [0, 0, 0, 1, 1, 1]
    assert lines(trained, "broken")[3]["loss"] is None


def test_a_stop_signal_to_one_process_saves_the_step_of_all(trained):
    assert [line["step"] for line in lines(trained, "two_then_one")][:4] == [1, 2, 3, 4]
    assert load_resume(trained / "two_then_one" / "checkpoints" / "resume.pt")["counters"]["step"] == 6
    assert not (trained / "unlike" / "checkpoints").exists()


def test_a_dead_process_ends_the_others_with_a_message(trained):
    said = (trained / "said").read_text()
    assert "process 0 has lost another one, whose own message says why it ended" in said and "Signal 9 (SIGKILL)" in said
    assert [line["step"] for line in lines(trained, "dies")] == [1, 2, 3]


def running(process: subprocess.Popen, folder: Path, exp: str, step: int) -> list[int]:
    """The processes that torchrun has started, once they have taken `step` steps."""
    log, limit = folder / exp / "log" / "train.jsonl", time.monotonic() + MINUTES * 60
    while not log.exists() or len(log.read_text().splitlines()) < step:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[1]
        time.sleep(0.05)
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_a_dead_process_ends_the_command_with_a_message(folder):
    process = start(folder, *TRAIN, "killed", "--train-conf.max-steps", "3000")
    os.kill(running(process, folder, "killed", 1)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=MINUTES * 60)
    assert process.returncode != 0
    assert "steermoe train: error: process 0 has lost another one" in err and "Signal 9 (SIGKILL)" in err
    assert json.loads((folder / "killed" / "environment.json").read_text())["processes"] == "2"


@pytest.mark.slow
def test_the_command_stops_with_a_checkpoint_and_goes_on_there(folder):
    options = ("--train-conf.save-steps", "3000", "--train-conf.valid-steps", "5", "--train-conf.max-steps")
    process = start(folder, *TRAIN, "stopped", *options, "3000")
    running(process, folder, "stopped", 5)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    step = load_resume(folder / "stopped" / "checkpoints" / "resume.pt")["counters"]["step"]
    assert f"stopped by SIGTERM; step {step} is saved" in err and len(lines(folder, "stopped")) == step
    process = start(folder, *TRAIN, "stopped", *options, str(step + 3))
    out, err = process.communicate(timeout=MINUTES * 60)
    assert process.returncode == 0 and out.count("best.safetensors") == 1, err
    assert [line["step"] for line in lines(folder, "stopped")] == list(range(1, step + 4))


@pytest.mark.parametrize(("number", "size"), [(1, 1), (1, 4), (4, 4), (7, 3), (9, 2), (64, 8)])
def test_shares_are_even_and_the_shortest_make_the_larger_ones(number, size):
    shares = [share(list(range(number)), rank, size) for rank in range(size)]
    assert sum(shares, []) == list(range(number))
    assert sorted(map(len, shares), reverse=True) == list(map(len, shares)) and len(shares[0]) - len(shares[-1]) <= 1


def test_shares_cost_about_the_same():
    lengths = np.random.default_rng(0).integers(100, 3000, 2000).tolist()
    for batch in epoch_batches(lengths, 48000, 64, 1, 0):
        costs = [max(lengths[i] for i in part) * len(part) for part in (share(batch, rank, 2) for rank in range(2)) if part]
        widest = max(lengths[i] for i in batch) / min(lengths[i] for i in batch)
        assert len(batch) == 1 or max(costs) <= min(costs) * widest + max(lengths[i] for i in batch)


def test_one_process_shares_nothing():
    assert share([3, 1, 2], 0, 1) == [3, 1, 2] and distributed.gather("x") == ["x"] and distributed.join("cuda") == "cuda"
    assert distributed.add_up(2.0, 3, {"a": 1.0}) == (2.0, 3, {"a": 1.0})


def test_several_gpus_for_one_process_are_an_error_that_names_torchrun(tmp_path):
    with pytest.raises(UserError, match="--ngpu 2: .* torchrun --nproc-per-node 2 -m steermoe.bin.train"):
        main(["--train", "train.jsonl", "--dev", "dev.jsonl", "--exp", str(tmp_path), "--ngpu", "2"])


def test_a_process_without_a_gpu_of_its_own_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 2 on a machine with 1 GPU; give --nproc-per-node 1"):
        distributed.join("cuda")
