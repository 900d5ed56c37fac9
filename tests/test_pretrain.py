"""The Conformer that stage 3 makes: its files, an exact resume, the teacher, augmentation, statistics; and that it learns."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

import tones
from steermoe.bin.pretrain import main
from steermoe.config import load_config
from steermoe.data.augment import Augment, AugmentConf
from steermoe.data.fbank import KaldiFbank
from steermoe.data.features import WhisperLogMel
from steermoe.encoders.conformer import Conformer, ConformerEncoder
from steermoe.encoders.ctc import FILES, ConformerCTC
from steermoe.encoders.whisper import WhisperEncoder
from steermoe.errors import UserError
from steermoe.fetch import MADE_HERE
from steermoe.train.pretrain import (
    CtcAndHint,
    Moments,
    PretrainDataset,
    PretrainExample,
    Pretraining,
    collator,
    load_pretrain_config,
    make_units,
    measure_statistics,
)
from steermoe.train.trainer import Trainer

SPEC = {"freq_masks": 2, "freq_width": 10, "time_masks": 2, "time_width": 0.2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder with train.jsonl and dev.jsonl."""
    folder = tmp_path_factory.mktemp("tones")
    tones.make_corpus(folder, "train", 8)
    tones.make_corpus(folder, "dev", 3, seed=1)
    return folder


@pytest.fixture()
def settings(tiny_bases):
    """What conf/pretrain_conformer.yaml holds, of a size for tests."""
    return {
        "conformer_conf": {"dim": 16, "layers": 2, "heads": 2, "kernel": 5, "dropout": 0.1},
        "units": 12,
        "teacher": str(tiny_bases / "whisper"),
        "teacher_steps": 2,
        "augment_conf": {"speed": [0.9, 1.0, 1.1], **SPEC},
        "optim_conf": {"lr": {"encoder": 3e-3}, "warmup_steps": 2},
        "train_conf": {"max_steps": 6, "valid_steps": 2, "save_steps": 3, "batch_frames": 600, "num_threads": 1},
    }


def pretrain(folder, settings, corpus, *overrides):
    """Runs the verb; the encoder's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(settings))
    data = ("--train", str(corpus / "train.jsonl"), "--dev", str(corpus / "dev.jsonl"))
    main(["--config", str(folder / "pretrain.yaml"), *data, "--out", str(folder / "encoder"), *overrides])
    return folder / "encoder"


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log" / "train.jsonl").open()]


def parts(settings, corpus, augment=None):
    """Module, training set and the collator, as the verb makes them."""
    teacher = WhisperEncoder.from_pretrained(settings["teacher"], dtype="float32") if settings["teacher"] else None
    frontend = WhisperEncoder.frontend(settings["teacher"]) if teacher else None
    data = PretrainDataset(corpus / "train.jsonl", frontend, augment)
    model = make_units([entry["text"] for entry in data.entries], settings["units"])
    units = sentencepiece.SentencePieceProcessor(model_proto=model)
    torch.manual_seed(0)
    return Pretraining(Conformer(**settings["conformer_conf"]), units.get_piece_size(), teacher), data, collator(units)


def test_killed_and_resumed_it_leaves_the_same_files_which_load(settings, corpus, tmp_path, monkeypatch, capsys):
    whole = pretrain(tmp_path / "whole", settings, corpus)

    class Killed(BaseException):
        pass

    step = Trainer.optimizer_step

    def die_in_the_fifth(self, batches):
        if self.step == 4:  # saved in steps 2, 3 and 4
            raise Killed
        return step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "optimizer_step", die_in_the_fifth)
        with pytest.raises(Killed):
            pretrain(tmp_path / "killed", settings, corpus)
    assert not (tmp_path / "killed" / "encoder" / "config.json").exists()
    killed = pretrain(tmp_path / "killed", settings, corpus)
    assert contents(killed) == contents(whole)
    logs = [[{key: value for key, value in line.items() if key != "seconds"} for line in log_of(run)] for run in (whole, killed)]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert (whole / "plots" / "loss.png").is_file()

    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    capsys.readouterr()
    pretrain(tmp_path / "whole", settings, corpus)
    assert capsys.readouterr().out == f"{whole}: up to date\n"
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before

    # What the recipe loads is the module that was trained, at the best validation.
    trained, data, collate = parts(settings, corpus)
    trained.load_adapter_state(load_file(whole / "checkpoints" / "best.safetensors"))
    batch = collate([data[0], data[1]])
    with torch.no_grad():
        hidden, log_probs, lens = trained.eval()(batch.feats_bfm, batch.feat_lens_b)
        encoder, recogniser = ConformerEncoder.from_pretrained(str(whole), dtype="float32"), ConformerCTC.from_pretrained(whole)
        loaded, loaded_lens = encoder(batch.feats_bfm, batch.feat_lens_b)
        assert torch.equal(loaded, hidden) and torch.equal(loaded_lens, lens)
        assert torch.equal(recogniser.head(loaded).log_softmax(-1), log_probs)
    assert not any(parameter.requires_grad for parameter in recogniser.parameters()) and not recogniser.training
    made_by = json.loads((whole / "config.json").read_text())["made_by"]
    assert made_by["settings"]["units"] == 12 and "torch" in made_by["environment"]


def test_other_settings_or_data_start_anew(settings, corpus, tmp_path, monkeypatch):
    settings["train_conf"] |= {"max_steps": 3, "valid_steps": 3}
    folder = pretrain(tmp_path, settings, corpus)
    first = contents(folder)
    overridden = ("--train-conf.seed", "2")
    pretrain(tmp_path, settings, corpus, *overridden)
    assert contents(folder)["model.safetensors"] != first["model.safetensors"] and len(log_of(folder)) == 3

    class Killed(BaseException):
        pass

    def die(self):
        raise Killed

    monkeypatch.setattr(Trainer, "run", die)
    shutil.copytree(corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "train.jsonl").open("a") as stream:
        stream.write((corpus / "dev.jsonl").read_text())
    with pytest.raises(Killed):
        pretrain(tmp_path, settings, tmp_path / "corpus", *overridden)
    # No encoder of old settings stands beside the units of new ones.
    assert not any((folder / name).exists() for name in FILES if name != "units.model")
    assert not (folder / "checkpoints" / "resume.pt").exists()


def test_without_a_teacher_it_is_ctc_alone(settings, corpus, tmp_path):
    settings |= {"teacher": "", "augment_conf": {}}
    settings["train_conf"] |= {"max_steps": 2, "valid_steps": 2}
    folder = pretrain(tmp_path, settings, corpus)
    assert all(line["loss"] == pytest.approx(line["ctc"]) and "hint" not in line for line in log_of(folder))
    assert ConformerCTC.from_pretrained(folder).encoder.sizes["layers"] == 2


def test_the_teacher_stays_as_it_is(settings, corpus):
    model, data, collate = parts(settings, corpus)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    trained = model.parameter_groups()["encoder"]
    assert trained.keys() == {name for name, _ in model.named_parameters() if name.split(".")[0] in ("encoder", "ctc", "hint")}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    model.train()
    assert not model.teacher.training
    loss = CtcAndHint(1.0, 0)(model, collate([data[0], data[1]]), 1)
    loss.total.backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in trained.values())
    assert not any(name.startswith("teacher.") for name in model.adapter_state())
    assert model.bases() == {"teacher": model.teacher.fingerprint}


def test_tensors_of_another_module_are_named(settings, corpus):
    model, _, _ = parts(settings, corpus)
    state = model.adapter_state()
    bias = state.pop("ctc.bias")
    with pytest.raises(RuntimeError, match="ctc.bias is not in both"):
        model.load_adapter_state(state)
    with pytest.raises(RuntimeError, match="more is not in both"):
        model.load_adapter_state(state | {"ctc.bias": bias, "more": bias})


def test_ctc_joins_after_the_steps_with_the_teacher_alone(settings, corpus):
    model, data, collate = parts(settings, corpus)
    model.eval()  # without dropout
    batch, objective = collate([data[0], data[1]]), CtcAndHint(0.5, 2)
    losses = {step: objective(model, batch, step) for step in (1, 2, 3, None)}
    for step, loss in losses.items():
        alone = step in (1, 2)
        total = 0.5 * loss.stats["hint"] + (0 if alone else loss.stats["ctc"])
        assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert losses[None].stats == losses[1].stats and losses[1].units == int(batch.target_lens_b.sum())
    losses[2].total.backward()
    assert not model.ctc.weight.grad.any() and model.hint.weight.grad.any()
    losses[3].total.backward()
    assert model.ctc.weight.grad.any()


def test_the_loss_of_a_batch_by_hand(settings, corpus):
    """CTC and squared error, each summed up from the utterances alone: padding adds nothing."""
    model, data, collate = parts(settings, corpus)
    model.eval()
    torch.nn.init.normal_(model.hint_mean)
    torch.nn.init.uniform_(model.hint_std, 0.5, 2)
    examples = [data[index] for index in range(3)]
    batch = collate(examples)
    together = CtcAndHint(1.0, 0)(model, batch)
    ctc, squares, values = 0.0, 0.0, 0
    for example in examples:
        alone = collate([example])
        hidden, log_probs, lens = model(alone.feats_bfm, alone.feat_lens_b)
        lengths = lens[0], alone.target_lens_b[0]
        ctc += torch.nn.functional.ctc_loss(log_probs[0], alone.targets_u, *lengths, reduction="sum").item()
        states, frames = model.teacher(alone.teacher_bfm, alone.teacher_lens_b)
        states = model.teacher.final_norm(states)[0, : int(frames[0])]
        wanted = torch.stack([pair.mean(0) for pair in states.split(2)])  # 50 Hz to 25 Hz
        length = min(len(wanted), hidden.shape[1])
        wanted = (wanted[:length] - model.hint_mean) / model.hint_std
        squares += (model.hint(hidden[0, :length]) - wanted).square().sum().item()
        values += wanted.numel()
    assert together.stats["ctc"] == pytest.approx(ctc, rel=1e-4)
    assert together.stats["hint"] / together.units == pytest.approx(squares / values, rel=1e-4)


def test_an_utterance_with_more_units_than_frames_breaks_nothing(settings, corpus):
    settings["teacher"] = ""
    model, data, collate = parts(settings, corpus)
    impossible = data[0]._replace(feats_fm=data[0].feats_fm[:5], text="low high low high")
    loss = CtcAndHint(1.0, 0)(model, collate([impossible, data[1]]), 1)
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_units_fold_case_and_are_counted_from_one(corpus):
    units = sentencepiece.SentencePieceProcessor(model_proto=make_units(["Low HIGH", "low low high"], 12))
    batch = collator(units)([data_item("LOW high"), data_item("high")])
    assert batch.targets_u.min() >= 1 and batch.target_lens_b.sum() == len(batch.targets_u)
    first = (batch.targets_u[: batch.target_lens_b[0]] - 1).tolist()
    assert units.decode(first) == "low high" and batch.teacher_bfm is None
    assert make_units(["low high"], 12) == make_units(["low high"], 12)
    with pytest.raises(UserError, match="units: 3: sentencepiece makes no model of 1 transcripts"):
        make_units(["low high"], 3)


def data_item(text):
    return PretrainExample(torch.zeros(40, 80), None, text)


def test_masks_are_the_student_s_alone(settings, corpus):
    masked = PretrainDataset(corpus / "train.jsonl", WhisperLogMel(80), Augment(AugmentConf(**SPEC), 1))
    plain = PretrainDataset(corpus / "train.jsonl", WhisperLogMel(80))
    assert all(torch.equal(masked[i].teacher_fm, plain[i].teacher_fm) for i in range(len(plain)))
    assert not any(torch.equal(masked[i].feats_fm, plain[i].feats_fm) for i in range(len(plain)))
    before = masked[0].feats_fm
    assert torch.equal(before, masked[0].feats_fm)
    masked.epoch = 1
    assert not torch.equal(before, masked[0].feats_fm)


def test_student_and_teacher_hear_the_same_speed(corpus):
    data = PretrainDataset(corpus / "train.jsonl", WhisperLogMel(80), Augment(AugmentConf(speed=[0.5, 2.0]), 1))
    changes = set()
    for index in range(len(data)):
        samples_n, example = data.samples(index), data[index]
        assert torch.equal(example.feats_fm, KaldiFbank()(samples_n))
        assert torch.equal(example.teacher_fm, WhisperLogMel(80)(samples_n))
        changes.add(round(len(samples_n) / 16000 / data.entries[index]["duration"], 2))
        assert abs(len(example.feats_fm) - data.lengths()[index]) <= 3
    assert changes == {0.5, 2.0}


def test_slowing_down_stays_within_what_the_teacher_reads(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 28 * 16000)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    entry = {"utt": "a-1", "spk": "a", "text": "low", "feats": "none:0", "num_frames": 2798, "duration": 28.0, "num_tokens": 3}
    (tmp_path / "long.jsonl").write_text(json.dumps(entry | {"wav": str(tmp_path / "long.wav")}) + "\n")
    augment = Augment(AugmentConf(speed=[0.9]), 1)
    taught = PretrainDataset(tmp_path / "long.jsonl", WhisperLogMel(80), augment)
    assert len(taught.samples(0)) == 28 * 16000 and 2800 <= len(taught[0].teacher_fm) <= 3000 and taught.lengths() == [2798]
    alone = PretrainDataset(tmp_path / "long.jsonl", None, augment)
    assert len(alone.samples(0)) > 31 * 16000 and alone.lengths()[0] >= len(alone[0].feats_fm)


def test_statistics_are_those_of_the_audio_as_it_is(settings, corpus, tmp_path):
    """Of the features without masks, by frame, not by utterance."""
    settings["train_conf"] |= {"max_steps": 3, "valid_steps": 3}
    saved = load_file(pretrain(tmp_path, settings, corpus) / "model.safetensors")
    data = PretrainDataset(corpus / "train.jsonl")
    feats = torch.cat([data[index].feats_fm for index in range(len(data))])
    assert torch.allclose(saved["cmvn_mean"], feats.mean(0), atol=1e-4)
    assert torch.allclose(1 / saved["cmvn_istd"], feats.std(0, correction=0), rtol=1e-4)

    model, data, _ = parts(settings, corpus)
    measure_statistics(model, data, 1)
    heard = [model.hear(data[i].teacher_fm[None], torch.tensor([len(data[i].teacher_fm)]))[0][0] for i in range(len(data))]
    scaled = (torch.cat(heard) - model.hint_mean) / model.hint_std
    assert scaled.mean(0).abs().max() < 1e-3 and (scaled.std(0, correction=0) - 1).abs().max() < 1e-3


def test_moments_of_pieces_and_of_a_constant():
    moments, rows = Moments(), 1e3 + torch.randn(50, 3)
    rows[:, 2] = 7
    for piece in rows.split(13):
        moments.add(piece)
    mean, std = moments.mean_std()
    assert torch.allclose(mean, rows.mean(0)) and torch.allclose(std[:2], rows.std(0, correction=0)[:2], rtol=1e-4)
    assert 0 < std[2] < 1e-3  # a band that never changes is not divided by zero


def test_what_cannot_be_heard_is_known_before_training(corpus, tmp_path):
    entries = [json.loads(line) for line in (corpus / "dev.jsonl").open()]
    for wav, message in ((None, "no 'wav'"), ("cat x.wav |", "is a command")):
        entries[1]["wav"] = wav
        (tmp_path / "dev.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        with pytest.raises(UserError, match=rf"dev\.jsonl:2: .*{message}"):
            PretrainDataset(tmp_path / "dev.jsonl")


def test_the_ctc_loss_falls_on_new_utterances(tmp_path):
    """Tones of two heights, each a word: after seconds of training every answer is made of these words, if not yet the right ones."""
    tones.make_corpus(tmp_path, "train", 80)
    tones.make_corpus(tmp_path, "dev", 12, seed=1)
    settings = {
        "conformer_conf": {"dim": 16, "layers": 1, "heads": 2, "kernel": 7, "dropout": 0.0},
        "units": 12,
        "teacher": "",
        "optim_conf": {"lr": {"encoder": 5e-3}, "warmup_steps": 10, "schedule": "linear"},
        "train_conf": {"max_steps": 120, "valid_steps": 60, "batch_frames": 1500, "num_threads": 1},
    }
    folder = pretrain(tmp_path, settings, tmp_path)
    log = log_of(folder)
    assert log[-1]["dev_ctc"] < 0.05 * log[0]["ctc"]
    data, recogniser = PretrainDataset(tmp_path / "dev.jsonl"), ConformerCTC.from_pretrained(folder)
    feats = [data[index].feats_fm for index in range(len(data))]
    answers = recogniser.transcribe(pad_sequence(feats, batch_first=True), torch.tensor([len(feats_fm) for feats_fm in feats]))
    assert {word for answer in answers for word in answer.split()} <= set(tones.HERTZ) and any(answers)


def test_configuration_and_overrides(tmp_path, settings):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(settings))
    conf = load_pretrain_config(tmp_path / "p.yaml", ["--conformer-conf.layers", "3", "--optim-conf.lr.encoder", "1e-4"])
    assert conf.conformer_conf.layers == 3 and conf.conformer_conf.dim == 16 and conf.optim_conf.lr == {"encoder": 1e-4}
    assert conf.augment_conf.speed == [0.9, 1.0, 1.1] and conf.train_conf.accum_grad == 1
    assert load_pretrain_config(tmp_path / "p.yaml", ["--teacher", ""]).teacher == ""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("unit", 5, "unknown key unit .*did you mean 'units'"),
        ("units", 1, "units: 1 is below 2"),
        ("units", 1.5, "units: 1.5 is not a whole number"),
        ("teacher", 3, "teacher: 3 is not a text"),
        ("teacher_steps", -1, "teacher_steps: -1 is below 0"),
        ("teacher_steps", 6, "teacher_steps: 6 leave no step for the CTC"),
        ("teacher_weight", -0.5, "teacher_weight: -0.5 is below 0"),
        ("conformer_conf", 7, "conformer_conf holds keys"),
        ("conformer_conf.width", 7, "unknown key conformer_conf.width"),
        ("conformer_conf.dim", 0, "conformer_conf.dim: 0 is not an even number over 0"),
        ("conformer_conf.dim", 15, "conformer_conf.dim: 15 is not an even number over 0"),
        ("conformer_conf.layers", 0, "conformer_conf.layers: 0 is not over 0"),
        ("conformer_conf.heads", 0, "conformer_conf.heads: 0 is not a divisor of dim, 16"),
        ("conformer_conf.heads", 3, "conformer_conf.heads: 3 is not a divisor of dim, 16"),
        ("conformer_conf.kernel", 4, "conformer_conf.kernel: 4 is not an odd number over 0"),
        ("conformer_conf.dropout", 1.0, "conformer_conf.dropout: 1.0 is not from 0 to below 1"),
        ("augment_conf.speed", [9], "augment_conf.speed"),
        ("optim_conf.lr.projector", 1e-3, r"unknown key optim_conf.lr.projector \(known: encoder\)"),
        ("optim_conf.lr.encoder", -1.0, "optim_conf.lr: -1.0 is below 0"),
        ("optim_conf.schedule", "sine", "optim_conf.schedule: 'sine' is not"),
        ("train_conf.max_steps", 0, "train_conf.max_steps: 0 is below 1"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, key, value, message):
    *above, last = key.split(".")
    place = settings
    for part in above:
        place = place.setdefault(part, {})
    place[last] = value
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=rf"p\.yaml: {message}"):
        load_pretrain_config(tmp_path / "p.yaml")


@pytest.mark.parametrize("recipe", ["asterisk", "librispeech", "mini_librispeech"])
def test_the_recipes_configurations_are_right(recipe):
    folder = Path(__file__).resolve().parents[1] / "egs" / recipe / "conf"
    assert load_pretrain_config(folder / "pretrain_conformer.yaml").teacher == "whisper-tiny.en"
    config = load_config(folder / "train_conformer.yaml")
    assert config.encoder == "conformer" and config.encoder_conf["model"].startswith(MADE_HERE)
