"""The CTC head of a recipe's own Conformer: greedy reading, the verb that transcribes with it, a resume, damaged files."""

from __future__ import annotations

import json
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import tones
from steermoe.bin import ctc as verb
from steermoe.data.dataset import AudioTextDataset
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.encoders.ctc import FILES, ConformerCTC, read_greedily
from steermoe.errors import UserError
from steermoe.train.pretrain import make_units


def write_recogniser(folder, seed=0):
    """Random weights, spread so that answers differ."""
    torch.manual_seed(seed)
    model = make_units(["low high", "high low low"], 12)
    units = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    conformer, head = Conformer(16, 1, 2, kernel=5), nn.Linear(16, units + 1)
    conformer.cmvn_mean += 5
    nn.init.normal_(head.weight)
    save_conformer(folder, conformer, {})
    save_file(head.state_dict(), folder / "ctc.safetensors")
    (folder / "units.model").write_bytes(model)
    return folder


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return write_recogniser(tmp_path_factory.mktemp("recogniser"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tones.make_corpus(tmp_path_factory.mktemp("tones"), "test", 6)


def test_reading_by_hand():
    best = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3], [2, 2, 0, 1, 1, 1, 1, 1], [0] * 8, [3] * 8])
    logits = torch.nn.functional.one_hot(best, 4).float() - 5
    # A blank between two runs of a unit makes it two units; what comes after an utterance's end is not read.
    assert read_greedily(logits, torch.tensor([8, 3, 8, 0])) == [[0, 0, 1, 2], [1], [], []]


def test_alone_or_in_a_batch_the_answer_is_the_same(recogniser, data):
    model = ConformerCTC.from_pretrained(recogniser)
    feats = [example.feats_fm for example in (AudioTextDataset(data)[index] for index in range(6))]
    lens = torch.tensor([len(f) for f in feats])
    together = model.transcribe(pad_sequence(feats, batch_first=True, padding_value=99.0), lens)
    assert together == [model.transcribe(f[None], length[None])[0] for f, length in zip(feats, lens)]
    assert len(set(together)) > 1


def transcribe(model, data, out, *more):
    verb.main(["--model", str(model), "--data", str(data), "--out", str(out), *more])


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ("text", "hyp.trn", "ref.trn")}


def test_verb_writes_hypotheses_in_order_and_is_up_to_date_after(recogniser, data, tmp_path, capsys):
    out = tmp_path / "decode"
    transcribe(recogniser, data, out)
    entries = [json.loads(line) for line in data.open()]
    model, dataset = ConformerCTC.from_pretrained(recogniser), AudioTextDataset(data)
    texts = [model.transcribe(dataset[i].feats_fm[None], torch.tensor([entries[i]["num_frames"]]))[0] for i in range(6)]
    assert (out / "text").read_text().splitlines() == [f"{e['utt']} {text}".rstrip() for e, text in zip(entries, texts)]
    assert (out / "ref.trn").read_text().splitlines() == [f"{e['text']} ({e['spk']}-{e['utt']})" for e in entries]
    assert (out / "hyp.trn").read_text().splitlines()[0].endswith(f"({entries[0]['spk']}-{entries[0]['utt']})")
    figures = json.loads((out / "decode.json").read_text())
    assert figures["utterances"] == 6 and figures["decode_conf"] == {"model": str(recogniser), "ngpu": 0}
    before = contents(out)
    capsys.readouterr()
    transcribe(recogniser, data, out)
    assert capsys.readouterr().out == f"{out}/hyp.trn: up to date\n"
    transcribe(write_recogniser(tmp_path / "other", seed=1), data, out)
    assert "up to date" not in capsys.readouterr().out and contents(out)["text"] != before["text"]


def test_a_killed_run_goes_on_behind_its_last_batch(recogniser, data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    monkeypatch.setattr(verb, "MAX_BATCH", 2)
    transcribe(recogniser, data, tmp_path / "whole")
    answer, calls = ConformerCTC.transcribe, []

    def counted(self, *batch):
        calls.append(len(batch[1]))
        if len(calls) == 2:
            raise Killed
        return answer(self, *batch)

    monkeypatch.setattr(ConformerCTC, "transcribe", counted)
    with pytest.raises(Killed):
        transcribe(recogniser, data, tmp_path / "killed")
    assert not (tmp_path / "killed" / "hyp.trn").exists()
    transcribe(recogniser, data, tmp_path / "killed")
    assert calls == [2, 2, 2, 2] and contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_folders_without_a_head(data, tmp_path):
    save_conformer(tmp_path / "plain", Conformer(16, 1, 2), {})
    for folder, missing in ((tmp_path / "plain", "ctc.safetensors"), (tmp_path / "nowhere", "config.json")):
        with pytest.raises(UserError, match=f"{folder}: no {missing}: not a Conformer with a CTC head; stage 3 makes one"):
            transcribe(folder, data, tmp_path / "out")


def test_a_gpu_that_is_not_there(recogniser, data, tmp_path):
    with pytest.raises(UserError, match="--ngpu 4"):
        transcribe(recogniser, data, tmp_path / "out", "--ngpu", "4")


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def with_sizes(**sizes):
    def damage(file):
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"sizes": config["sizes"] | sizes}))

    return damage


def head_of_another_width(file):
    save_file({name: tensor[:-1].clone() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", cut, "no Conformer here"),
        ("config.json", lambda file: file.write_text("[]"), "no Conformer here"),
        ("config.json", lambda file: file.write_bytes(b"\xff\xfe"), "no Conformer here"),
        ("config.json", with_sizes(heads=0), "damaged"),
        ("config.json", with_sizes(dim=-16), "damaged"),
        ("config.json", with_sizes(dim="16"), "damaged"),
        ("config.json", with_sizes(feat_dim=1), "damaged"),
        ("config.json", with_sizes(more=1), "damaged"),
        ("config.json", with_sizes(layers=2), "does not have the tensors"),
        ("model.safetensors", cut, "damaged"),
        ("model.safetensors", lambda file: file.write_bytes(b""), "damaged"),
        ("ctc.safetensors", cut, "its CTC head is damaged"),
        ("ctc.safetensors", head_of_another_width, "its CTC head is damaged"),
        ("ctc.safetensors", lambda file: save_file({"weight": torch.zeros(2, 16)}, file), "its CTC head is damaged"),
        ("units.model", lambda file: file.write_bytes(b"\x00garbage" * 9), "its CTC head is damaged"),
        ("units.model", lambda file: file.write_bytes(b""), "its CTC head is damaged"),
    ],
)
def test_damaged_files_are_named(recogniser, tmp_path, name, damage, message):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in FILES:
        shutil.copy(recogniser / file, folder)
    damage(folder / name)
    with pytest.raises(UserError, match=f"copy: .*{message}"):
        ConformerCTC.from_pretrained(folder)
