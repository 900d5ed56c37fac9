"""Several data sets in one training: weights, paths of other recipes, each utterance's own prompt, exact resume."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from test_pipeline import Recipe

from steermoe.bin import join_sets
from steermoe.bin.train import adapter_trainer
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.sampler import draw, epoch_batches
from steermoe.errors import UserError
from steermoe.model import SteerMoE


def test_weights_say_how_often():
    weights = [1.0] * 100 + [2.0] * 100 + [0.25] * 400
    counts = [np.bincount(draw(weights, 7, epoch), minlength=600) for epoch in range(20)]
    assert all((count[:100] == 1).all() and (count[100:200] == 2).all() and count[200:].max() == 1 for count in counts)
    assert sum(count[200:].sum() for count in counts) == pytest.approx(2000, rel=0.1)
    assert (np.sum(counts, axis=0) > 0).mean() > 0.99  # other ones in each epoch
    assert (draw(weights, 7, 3) == draw(weights, 7, 3)).all() and (draw(weights, 7, 3)[-5:] != draw(weights, 8, 3)[-5:]).any()


def test_batches_of_weighted_utterances():
    lengths = list(range(100, 400))
    assert epoch_batches(lengths, 4000, 8, 1, 2, [1.0] * 300) == epoch_batches(lengths, 4000, 8, 1, 2)
    batches = epoch_batches(lengths, 4000, 8, 1, 2, [2.0] * 300)
    assert Counter(index for batch in batches for index in batch) == Counter({index: 2 for index in range(300)})
    assert all(max(lengths[index] for index in batch) * len(batch) <= 4000 for batch in batches)


def make_recipe(folder, lengths, prompt=""):
    """A data.jsonl as stage 2 leaves it, with paths relative to its recipe's folder; absolute paths of audio stay."""
    dump = folder / "dump" / "feats" / "train"
    dump.mkdir(parents=True)
    path = tiny.make_dataset(dump, lengths, name="train")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for index, entry in enumerate(entries):
        entry["feats"] = entry["feats"].replace(f"{folder}/", "")
        entry["wav"] = [f"downloads/{index}.wav", "/x/y.wav", "sox x.wav - |"][index % 3]
        if prompt:
            entry["prompt"] = prompt
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Two recipes beside each other; the current folder is the first one's."""
    make_recipe(tmp_path / "a", [50, 80, 123, 200], "What is it?")
    make_recipe(tmp_path / "b", [60, 70, 90])
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path


SETS = ("dump/feats/train/train.jsonl:2", "../b/dump/feats/train/train.jsonl:0.5")


def test_sets_of_two_recipes(recipes, capsys):
    join_sets.main([*SETS, "--out", "exp/train.jsonl"])
    said = capsys.readouterr().out
    assert "train.jsonl: 4 utterances x 2, 0.00 h an epoch, 89 %" in said and "3 utterances x 0.5" in said
    data = AudioTextDataset("exp/train.jsonl")
    assert data.weights.tolist() == [2.0] * 4 + [0.5] * 3
    assert [example.prompt for example in data] == ["What is it?"] * 4 + [None] * 3
    assert [len(data[index].feats_fm) for index in range(7)] == [50, 80, 123, 200, 60, 70, 90]  # both recipes' archives are read
    assert data.entries[0]["wav"] == "downloads/0.wav" and data.entries[4]["wav"] == "../b/downloads/0.wav"
    assert data.entries[5]["wav"] == "/x/y.wav" and data.entries[6]["wav"] == "sox x.wav - |"
    join_sets.main([*SETS, "--out", "exp/train.jsonl"])
    assert "up to date" in capsys.readouterr().out
    join_sets.main([SETS[0], SETS[1].removesuffix(":0.5"), "--out", "exp/train.jsonl"])
    assert AudioTextDataset("exp/train.jsonl").weights.tolist() == [2.0] * 4 + [1.0] * 3


@pytest.mark.parametrize(
    "word, message",
    [
        ("dump/feats/train/train.jsonl:x", "the weight 'x' is not a number over 0"),
        ("dump/feats/train/train.jsonl:0", "the weight '0' is not a number over 0"),
        ("dump/feats/dev/train.jsonl:1", "dump/feats/dev/train.jsonl: no such file; run stage 2"),
        ("lost.jsonl", "lost.jsonl:1: gone.ark is in no folder above the file"),
        ("empty.jsonl", "empty.jsonl: no utterance in it"),
        ("wide.jsonl", "join sets of one encoder's features"),
    ],
)
def test_refused(recipes, word, message):
    from steermoe.data.ark import ArkWriter

    with open("lost.jsonl", "w") as lost, open("empty.jsonl", "w"), open("wide.jsonl", "w") as wide, ArkWriter("wide.ark", 0) as ark:
        lost.write(json.dumps({"feats": "gone.ark:5", "duration": 1}) + "\n")
        wide.write(json.dumps({"feats": f"wide.ark:{ark.write('u', np.zeros((9, 40), np.float32))}", "duration": 1}) + "\n")
    with pytest.raises(UserError) as error:
        join_sets.main([SETS[0], word, "--out", "exp/train.jsonl"])
    assert message in str(error.value)


def test_a_joint_training_resumes_exactly_and_asks_each_its_own(recipes, tiny_config):
    join_sets.main([*SETS, "--out", "exp/train.jsonl"])
    tiny_config.train_conf.max_steps, tiny_config.train_conf.batch_frames = 6, 300

    def trainer(exp):
        data = AudioTextDataset("exp/train.jsonl"), AudioTextDataset("dump/feats/train/train.jsonl")
        return adapter_trainer(SteerMoE.from_config(tiny_config), tiny_config, *data, recipes / exp, {"git": "test"})

    whole, killed = trainer("whole"), trainer("killed")
    prompts = Counter()
    collate = whole.collate
    whole.collate = lambda examples: (prompts.update(example.prompt for example in examples), collate(examples))[1]
    whole.run()
    assert set(prompts) == {"What is it?", None} and prompts["What is it?"] > prompts[None]
    step = killed.optimizer_step

    def die(batches):
        if killed.step == 4:
            raise KeyboardInterrupt
        return step(batches)

    killed.optimizer_step = die
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = trainer("killed")
    again.run()
    assert whole.epoch > 0  # the resumed run has drawn a later epoch's utterances too
    one, other = whole.model.adapter_state(), again.model.adapter_state()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_driver_trains_on_several_sets(tmp_path):
    recipe = Recipe(tmp_path / "repository")
    (recipe.folder / "elsewhere.jsonl").write_text("")
    status, _, err = recipe.run("--train-sets", "train other:2 ./elsewhere.jsonl:0.5", "--dev-sets", "dev test", "--own-score", "false")
    assert status == 0, err
    calls, dump = recipe.calls(), "dump/whisper_feats"
    assert [line for line in calls if line.startswith("join_sets")] == [
        f"join_sets --out exp/whisper/train.jsonl {dump}/train/data.jsonl {dump}/other/data.jsonl:2 ./elsewhere.jsonl:0.5",
        f"join_sets --out exp/whisper/dev.jsonl {dump}/dev/data.jsonl {dump}/test/data.jsonl",
    ]
    (train,) = [line for line in calls if line.startswith("train")]
    assert "--train exp/whisper/train.jsonl --dev exp/whisper/dev.jsonl" in train
    assert {line.rpartition("/")[2] for line in calls if line.startswith("data_dir validate")} == {"train", "dev", "test", "other"}
