"""Training: parameter groups, schedule, accumulation, validation, early stop, and an exact resume after a kill."""

import copy
import functools
import json
import math

import pytest
import torch

import tiny
from steermoe.bin.train import adapter_trainer
from steermoe.checkpoint import load_resume
from steermoe.config import OptimConf
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.progress import Progress
from steermoe.train.events import EventFile
from steermoe.train.optim import lr_factor, make_optimizer
from steermoe.train.plots import plot_curves
from steermoe.train.trainer import MAX_NONFINITE


@pytest.fixture()
def data(tmp_path):
    lengths = [50, 80, 123, 200, 150, 60, 70, 90]
    return AudioTextDataset(tiny.make_dataset(tmp_path, lengths)), AudioTextDataset(tiny.make_dataset(tmp_path, [70, 90], 4, "dev"))


def trainer(config, data, exp):
    return adapter_trainer(SteerMoE.from_config(config), config, *data, exp, {"git": "test"})


def adapter(exp, name="last"):
    from safetensors.torch import load_file

    return load_file(exp / "checkpoints" / f"{name}.safetensors")


def test_three_learning_rates_and_no_decay_on_vectors_scales_and_biases(tiny_model):
    optimizer = make_optimizer(tiny_model.parameter_groups(), OptimConf(weight_decay=0.5))
    found = {}
    names = {id(p): n for n, p in tiny_model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found == {
        "steering.experts": (1e-2, 0.0),
        "steering.scales": (1e-2, 0.0),
        "steering.router_weight": (1e-3, 0.5),
        "steering.router_bias": (1e-3, 0.0),
        "projector.linear.weight": (1e-4, 0.5),
        "projector.linear.bias": (1e-4, 0.0),
    }


def test_schedules():
    def factors(schedule):
        return [lr_factor(step, OptimConf(warmup_steps=4, schedule=schedule), 12) for step in (1, 4, 8, 12)]

    assert factors("constant") == [0.25, 1, 1, 1] and factors("linear") == [0.25, 1, 0.5, 0]
    assert factors("cosine") == pytest.approx([0.25, 1, 0.5, 0])


def test_killed_and_resumed_ends_with_the_same_weights_and_log(tiny_config, data, tmp_path, monkeypatch):
    tiny_config.train_conf.save_steps = 3
    trainer(tiny_config, data, tmp_path / "whole").run()

    class Killed(BaseException):
        pass

    killed, steps = trainer(tiny_config, data, tmp_path / "killed"), 0
    step = killed.optimizer_step

    def die_in_the_fifth(batches):
        nonlocal steps
        steps += 1
        if steps == 5:  # after validations in steps 2 and 4 and a save in 3 and 4; step 5 is lost
            (tmp_path / "killed" / "log" / "train.jsonl").open("a").write('{"step": 5, "loss": 1}\n{"st')
            raise Killed
        return step(batches)

    monkeypatch.setattr(killed, "optimizer_step", die_in_the_fifth)
    with pytest.raises(Killed):
        killed.run()
    again = trainer(tiny_config, data, tmp_path / "killed")
    again.run()
    for name in ("last", "best"):
        one, other = adapter(tmp_path / "whole", name), adapter(tmp_path / "killed", name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    logs = [[json.loads(line) for line in (tmp_path / run / "log" / "train.jsonl").open()] for run in ("whole", "killed")]
    seen = [(tmp_path / run / "log" / "samples.jsonl").read_text() for run in ("whole", "killed")]
    assert seen[0] == seen[1] and [json.loads(line)["step"] for line in seen[0].splitlines()] == [0, 2, 4, 6]
    for run, log in zip(("whole", "killed"), logs):  # the event file has what the log has, each line once
        (events,) = (tmp_path / run / "log" / "tensorboard").iterdir()
        written = events.read_bytes()
        EventFile(events.parent).restart(log)
        assert next(events.parent.iterdir()).read_bytes() == written
    for line in logs[0] + logs[1]:
        line.pop("seconds"), line.pop("watch_seconds", None)
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]


def test_accumulated_batches_weigh_every_token_the_same(tiny_config, data, tmp_path):
    tiny_config.optim_conf.warmup_steps = 1
    one = trainer(tiny_config, data, tmp_path / "one")
    two = trainer(tiny_config, data, tmp_path / "two")
    examples = [data[0][i] for i in range(3)]
    figures = one.optimizer_step([one.collate(examples)])
    split = two.optimizer_step([two.collate(examples[:1]), two.collate(examples[1:])])
    assert split["loss"] == pytest.approx(figures["loss"], rel=1e-5)
    assert split["grad_norm"] == pytest.approx(figures["grad_norm"], rel=1e-3)


def test_clipping(tiny_config, data, tmp_path):
    tiny_config.train_conf.grad_clip = 1e-3
    run = trainer(tiny_config, data, tmp_path)
    assert run.optimizer_step([run.collate([data[0][0]])])["grad_norm"] > 1e-3
    assert math.sqrt(sum((p.grad**2).sum().item() for p in run.parameters)) == pytest.approx(1e-3, rel=1e-2)


def test_best_checkpoint_is_that_of_the_lowest_dev_loss(tiny_config, data, tmp_path, monkeypatch):
    from steermoe.checkpoint import read_metadata

    run, losses = trainer(tiny_config, data, tmp_path), iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("steermoe.train.trainer.sorted_batches", lambda *args: [[0]])
    objective = run.objective

    def faked(model, batch, step=None):
        loss = objective(model, batch)
        return loss if model.training else loss._replace(total=torch.tensor(next(losses) * loss.units))

    run.objective = faked
    run.run()
    assert read_metadata(tmp_path / "checkpoints" / "best.safetensors")[1]["step"] == 4


def test_a_long_validation_shows_its_progress(tiny_config, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("steermoe.train.trainer.Progress", functools.partial(Progress, every_s=0.0))
    tiny_config.train_conf.max_batch = 1
    trainer(tiny_config, data, tmp_path / "exp").validate()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "validation: 1/2 batch (50 %)", "validation: 2/2 batch (100 %)",
    ]  # fmt: skip


def test_early_stop(tiny_config, data, tmp_path):
    tiny_config.train_conf.patience, tiny_config.train_conf.max_steps = 1, 100
    for name in tiny_config.optim_conf.lr:
        tiny_config.optim_conf.lr[name] = 0.0  # nothing improves after the first validation
    run = trainer(tiny_config, data, tmp_path)
    run.run()
    assert run.step == 4 and (tmp_path / "checkpoints" / "last.safetensors").is_file()


def test_non_finite_steps_change_nothing_and_end_the_run_when_they_go_on(tiny_config, data, tmp_path):
    run = trainer(tiny_config, data, tmp_path)
    before = {name: tensor.clone() for name, tensor in run.model.adapter_state().items()}
    batch = run.collate([data[0][0]])
    broken = batch._replace(feats_bfm=batch.feats_bfm * math.nan)
    for _ in range(MAX_NONFINITE - 1):
        run.optimizer_step([broken])
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.adapter_state().items())
    with pytest.raises(UserError, match="not finite"):
        run.optimizer_step([broken])


def test_a_skipped_step_leaves_the_optimizer_and_moves_the_schedule(tiny_config, data, tmp_path):
    run = trainer(tiny_config, data, tmp_path)
    batch = run.collate([data[0][0]])
    run.optimizer_step([batch])
    before = copy.deepcopy(run.optimizer.state_dict()["state"])
    skipped = run.optimizer_step([batch._replace(feats_bfm=batch.feats_bfm * math.inf)])
    after = run.optimizer.state_dict()["state"]
    assert before and all(torch.equal(before[key][name], after[key][name]) for key in before for name in before[key])
    assert skipped["skipped"] == 1 and skipped["lr_router"] == tiny_config.optim_conf.lr["router"]  # step 2 of 2 of the warm-up
    assert run.optimizer_step([batch])["skipped"] == 1 and run.nonfinite == 0
    assert all(torch.isfinite(tensor).all() for tensor in run.model.adapter_state().values())


def test_a_loss_alone_that_is_not_finite_is_skipped_too(tiny_config, data, tmp_path):
    run = trainer(tiny_config, data, tmp_path)
    objective = run.objective
    run.objective = lambda *args: (loss := objective(*args))._replace(total=loss.total + math.inf)
    assert run.optimizer_step([run.collate([data[0][0]])])["skipped"] == 1


def test_skipped_steps_are_in_the_log_on_the_screen_and_counted_on_after_a_kill(tiny_config, data, tmp_path, capsys):
    tiny_config.train_conf.max_steps = 3
    run = trainer(tiny_config, data, tmp_path)
    objective = run.objective

    def broken_once(model, batch, step=None):
        loss = objective(model, batch, step)
        return loss._replace(total=loss.total * (math.nan if step == 2 else 1.0))

    run.objective = broken_once
    run.run()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in run.log_path.open()]
    assert [line["skipped"] for line in lines] == [0, 1, 1] and lines[1]["loss"] is None and lines[1]["grad_norm"] is None
    shown = capsys.readouterr().err
    assert ", 1 not finite and skipped" in shown and "train loss nan" not in shown
    tiny_config.train_conf.max_steps = 4
    trainer(tiny_config, data, tmp_path).run()
    assert [json.loads(line)["skipped"] for line in run.log_path.open()] == [0, 1, 1, 1]
    plot_curves(run.log_path, tmp_path / "plots")


def test_a_dev_loss_that_is_not_finite_is_an_error(tiny_config, data, tmp_path):
    run = trainer(tiny_config, data, tmp_path)
    with torch.no_grad():
        run.model.projector.linear.bias.fill_(math.nan)
    with pytest.raises(UserError, match="dev loss is nan in 1 of 1 batches.*because of spk0-dev000, spk1-dev001; lower"):
        run.validate()


def test_the_utterance_that_spoils_the_dev_loss_is_named(tiny_config, data, tmp_path):
    tiny_config.train_conf.max_batch = 4
    run = trainer(tiny_config, (data[1], data[0]), tmp_path)
    collate = run.collate

    def spoilt(examples):
        batch = collate(examples)
        if "spk1-train003" in batch.utts:
            batch.feats_bfm[batch.utts.index("spk1-train003")] = math.nan
        return batch

    run.collate = spoilt
    with pytest.raises(UserError, match="in 1 of [23] batches, in the first of them because of spk1-train003;"):
        run.validate()


def test_watching_changes_nothing_and_is_shown(tiny_config, data, tmp_path, capsys):
    for exp in ("watched", "unwatched"):
        run = trainer(tiny_config, data, tmp_path / exp)
        if exp == "unwatched":
            assert "\n  hyp   " in capsys.readouterr().err
            run.watch = None
        run.run()
    one, other = adapter(tmp_path / "watched"), adapter(tmp_path / "unwatched")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert "hyp" not in capsys.readouterr().err and not (tmp_path / "unwatched" / "log" / "samples.jsonl").exists()
    last = [json.loads(line) for line in (tmp_path / "watched" / "log" / "train.jsonl").open()][-1]
    assert len(last["scales"]) == 2 and len(last["gate_entropy"]) == 2 and [len(row) for row in last["expert_share"]] == [4, 4]


def test_curves_are_drawn_on_the_way_in_a_long_training(tiny_config, data, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("steermoe.train.trainer.plot_curves", lambda log, folder: drawn.append(len(log.read_text().splitlines())))
    monkeypatch.setattr("steermoe.train.trainer.PLOT_SECONDS", 0)
    trainer(tiny_config, data, tmp_path).run()
    assert drawn == [2, 4, 6]


def test_resume_refuses_other_bases_and_fewer_steps(tiny_config, data, tmp_path):
    trainer(tiny_config, data, tmp_path).run()
    tiny_config.train_conf.max_steps = 3
    with pytest.raises(UserError, match="already trained for 6 steps"):
        trainer(tiny_config, data, tmp_path).run()
    other = trainer(tiny_config, data, tmp_path)
    other.model.llm.fingerprint = "another"
    with pytest.raises(UserError, match="other weights of encoder or llm"):
        other.run()


def test_without_a_saved_state_the_log_starts_anew(tiny_config, data, tmp_path):
    first = trainer(tiny_config, data, tmp_path)
    first.run()
    first.resume_path.unlink()
    trainer(tiny_config, data, tmp_path).run()
    assert [json.loads(line)["step"] for line in first.log_path.open()] == [1, 2, 3, 4, 5, 6]


def test_the_budget_counts_the_frames_that_the_encoder_pads_to(tiny_config, data, tmp_path):
    tiny_config.encoder_conf["window"] = "crop"
    tiny_config.train_conf.batch_frames = 6000
    run = trainer(tiny_config, data, tmp_path)
    assert len(next(run.batches()).utts) == 2


def test_training_state_runs_no_code(tmp_path):
    torch.save({"x": print}, tmp_path / "resume.pt")
    with pytest.raises(UserError, match="resume.pt: not a readable training state"):
        load_resume(tmp_path / "resume.pt")


def test_curves_are_drawn(tmp_path):
    lines = [{"step": step, "loss": 3 / step, "ctc": 1.0, "grad_norm": 0.5, "lr_router": 1e-3} for step in range(1, 8)]
    lines[3] |= {"loss": None, "grad_norm": None}
    write_log(tmp_path / "plain.jsonl", lines)
    plot_curves(tmp_path / "plain.jsonl", tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["grad_norm.png", "lr.png"]
    lines[-1] |= {"dev_loss": 1.0, "dev_ctc": 1.0}
    lines[-1] |= {"scales": [0.1] * 12, "gate_entropy": [2.0] * 12, "expert_share": [[0.5] * 2] * 12}
    write_log(tmp_path / "steered.jsonl", lines)
    plot_curves(tmp_path / "steered.jsonl", tmp_path / "steered")
    names = ["ctc", "expert_share", "gate_entropy", "grad_norm", "loss", "lr", "scales"]
    assert sorted(path.name for path in (tmp_path / "steered").iterdir()) == [f"{name}.png" for name in names]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "steered").iterdir())


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
