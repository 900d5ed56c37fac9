"""What each process does in tests/test_distributed.py: `torchrun … distributed_worker.py FOLDER` trains in FOLDER in every way
that the test compares with a single process. FOLDER has train.yaml, train.jsonl and dev.jsonl.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path

import torch

from steermoe.bin.train import adapter_trainer
from steermoe.config import load_config
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.train import distributed
from steermoe.train.trainer import Trainer

CHANGED = 4  # a step in which both processes have utterances


def trainer(folder: Path, exp: str, *overrides: str) -> Trainer:
    config = load_config(folder / "train.yaml", list(overrides))
    data = AudioTextDataset(folder / "train.jsonl"), AudioTextDataset(folder / "dev.jsonl")
    return adapter_trainer(SteerMoE.from_config(config), config, *data, folder / exp, {"git": "test"})


def in_step(run: Trainer, number: int, change) -> Trainer:
    """In step `number` change(loss) takes the place of every loss."""
    objective = run.objective

    def changed(model, batch, step=None):
        loss = objective(model, batch, step)
        return change(loss) if step == number else loss

    run.objective = changed
    return run


def stop(loss):
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    assert distributed.join("cpu") == "cpu" and distributed.size() == 2
    last = distributed.rank() == 1
    whole = trainer(folder, "two")
    whole.run()
    state = torch.cat([parameter.detach().flatten() for parameter in whole.parameters])
    assert all(torch.equal(state, other) for other in distributed.gather(state)), "the processes have come apart"

    broken = trainer(folder, "broken")
    (in_step(broken, CHANGED, lambda loss: loss._replace(total=loss.total * math.nan)) if last else broken).run()
    assert set(distributed.gather(broken.skipped)) == {1}

    trainer(folder, "one_then_two").run()  # goes on where the test has stopped

    stopped = trainer(folder, "two_then_one", "--train-conf.save-steps", "100", "--train-conf.valid-steps", "100")
    try:
        (in_step(stopped, CHANGED, stop) if last else stopped).run()
        raise AssertionError("not stopped")
    except SystemExit as error:
        assert error.code == 128 + signal.SIGTERM and stopped.step == CHANGED

    unlike = trainer(folder, "unlike")
    unlike.step = distributed.rank()
    try:
        unlike.run()
        raise AssertionError("not noticed")
    except UserError as error:
        assert "some processes find other data" in str(error)

    dying = trainer(folder, "dies")
    (in_step(dying, CHANGED, die) if last else dying).run()  # the end of both


if __name__ == "__main__":
    main(Path(sys.argv[1]))
