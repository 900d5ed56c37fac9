"""The dry run: the paper's parameter table to the digit, and memory counted on the meta device, without weights or network."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steermoe.bin import prepare_model
from steermoe.config import config_from_dict, load_config
from steermoe.errors import UserError
from steermoe.memory import FusedAttention, LiveBytes, estimate, module_size
from steermoe.model import SteerMoE
from steermoe.shapes import meta_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture()
def nowhere(monkeypatch, tmp_path):
    """No model on the disk, and no way to fetch one."""
    monkeypatch.setattr("steermoe.shapes.on_disk", lambda *_, **__: None)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    monkeypatch.chdir(tmp_path)


def rows_of(table):
    return {line.split()[0]: line.split() for line in table.splitlines()}


@pytest.mark.parametrize(
    ("preset", "llm", "vectors", "router", "scales", "projection", "total", "base"),
    [
        ("W7B", "Qwen/Qwen2.5-0.5B-Instruct", "327,680", "327,936", "32", "1,147,776", "1,803,424", "494,032,768"),
        ("W7B", "Qwen/Qwen2.5-3B-Instruct", "327,680", "327,936", "32", "2,623,488", "3,279,136", "3,085,938,688"),
        ("W7B", "Qwen/Qwen2.5-7B-Instruct", "327,680", "327,936", "32", "4,591,104", "5,246,752", "7,615,616,512"),
        ("C3B", "Qwen/Qwen2.5-3B-Instruct", "163,840", "163,968", "16", "2,623,488", "2,951,312", "3,085,938,688"),
        ("C7B", "Qwen/Qwen2.5-7B-Instruct", "163,840", "163,968", "16", "4,591,104", "4,918,928", "7,615,616,512"),
    ],
)
def test_the_papers_parameters(nowhere, preset, llm, vectors, router, scales, projection, total, base):
    rows = rows_of(prepare_model.parameter_table(meta_model(load_config(None, ["--llm-conf.model", llm], preset))))
    found = [rows[name][-1] for name in ("vectors", "router", "scales")] + [rows["projector"][3], rows["sum"][2], rows["llm"][2]]
    assert found == [vectors, router, scales, projection, total, base]
    assert rows["encoder"][2:4] == [{"W": "636,968,960", "C": "710,543,968"}[preset[0]], "0"]


def test_the_dry_run_prints_table_and_memory_and_leaves_nothing(nowhere, capsys, tmp_path):
    prepare_model.main(["--dry-run", "true", "--preset", "C7B", "--exp", "exp"])
    out = capsys.readouterr().out
    assert rows_of(out)["sum"][1:3] == ["8,331,079,408", "4,918,928"] and not list(tmp_path.iterdir())
    for line in ("training:", "decoding:"):
        total, *parts = (float(word) for word, unit in zip(rows_of(out)[line], rows_of(out)[line][1:]) if unit == "GiB")
        assert abs(total - sum(parts)) < 0.02 and total > 15.5


def test_w7b_in_four_bits_fits_a_card_of_12_gb(nowhere):
    words = ["--llm-conf.quantization", "int4", "--train-conf.max-batch", "1", "--train-conf.accum-grad", "4"]
    config = load_config(None, words, "W7B")
    needed = estimate(meta_model(config), config)
    for activations in (needed.train_activations + needed.optimizer, needed.decode_activations):
        assert needed.weights + 1.1 * activations + 0.6 * 2**30 < 12 * 2**30
    full = load_config(None, preset="W7B")
    assert module_size(meta_model(full).llm)[1] > 2.5 * module_size(meta_model(config).llm)[1]


def test_models_on_the_disk_tell_their_own_sizes(tiny_config):
    assert prepare_model.parameter_table(meta_model(tiny_config)) == prepare_model.parameter_table(SteerMoE.from_config(tiny_config))


def test_unknown_models_are_named(nowhere):
    with pytest.raises(UserError, match="some/llm: not on this disk, and its sizes are not known"):
        meta_model(load_config(None, ["--llm-conf.model", "some/llm"]))
    with pytest.raises(UserError, match="exp/ctc: stage 3 of the recipe makes it"):
        meta_model(config_from_dict({"encoder": "conformer", "encoder_conf": {"model": "exp/ctc"}}))
    with pytest.raises(UserError, match="whisper-tiny.en is no model for encoder 'conformer'"):
        meta_model(config_from_dict({"encoder": "conformer", "encoder_conf": {"model": "whisper-tiny.en"}}))


def test_without_dry_run_an_experiment_folder_is_needed():
    with pytest.raises(UserError, match="--exp DIR is needed"):
        prepare_model.main([])


def test_bytes_alive_by_hand():
    """x (2, 3) float32 = 24 bytes. exp keeps its result, 24; the sum is 4; backward makes ones, 4 -> 24 by expansion, and the gradient."""
    x = torch.zeros(2, 3, device="meta", requires_grad=True)
    with LiveBytes(torch.nn.Linear(1, 1, device="meta")) as live:
        y = x.exp()
        z = x.exp()
        assert live.now == live.peak == 48
        del z
        assert (live.now, live.peak) == (24, 48)
        (y * 2).sum().backward()
    assert live.peak >= 24 + 24 + 4


def test_real_masks_and_lengths_meet_tensors_without_contents():
    mask, values = torch.tensor([[True, False], [True, True]]), torch.zeros(2, 2, 5, device="meta")
    with LiveBytes(torch.nn.Linear(1, 1, device="meta")):
        assert values[mask].shape == (3, 5)
        assert values.masked_fill(mask[..., None], 0.0).shape == (2, 2, 5)


def test_attention_keeps_no_scores():
    q, k = torch.zeros(1, 4, 64, 8, device="meta", requires_grad=True), torch.zeros(1, 2, 64, 8, device="meta")
    with FusedAttention(), LiveBytes(torch.nn.Linear(1, 1, device="meta")) as live:
        result = torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert result.shape == q.shape and live.peak == q.nbytes  # 4 x 64 x 64 scores would be 65,536 bytes


def test_more_utterances_take_more_and_a_longer_answer_a_larger_cache(tiny_config):
    needed = []
    tiny_config.decode_conf.beam = 32  # so that the cache outweighs the reading of the prompt
    for rows, tokens in ((1, 20), (4, 20), (4, 370)):
        tiny_config.train_conf.max_batch = tiny_config.decode_conf.max_batch = rows
        tiny_config.train_conf.batch_frames = tiny_config.decode_conf.batch_frames = 12000
        tiny_config.decode_conf.max_tokens = tokens
        needed.append(estimate(meta_model(tiny_config), tiny_config))
    assert [one.train_batch for one in needed] == [1, 4, 4]
    assert 3.5 < needed[1].train_activations / needed[0].train_activations < 4.5
    assert needed[2].decode_activations > needed[1].decode_activations
    tiny_config.train_conf.batch_frames = 7000  # two of 30 s
    assert estimate(meta_model(tiny_config), tiny_config).train_batch == 2


def test_an_encoder_that_needs_contents_only_loses_the_estimate(tiny_config, monkeypatch):
    model = meta_model(tiny_config)
    monkeypatch.setattr(type(model.encoder), "forward", lambda self, feats, *_: feats.sum().numpy())
    assert "not known in advance, whisper + linear + causal" in prepare_model.memory_lines(model, tiny_config)


MEASURE = """
import sys, torch
from steermoe.config import load_config
from steermoe.memory import _batch, estimate, longest_feats
from steermoe.model import SteerMoE
from steermoe.shapes import meta_model
from steermoe.train.objectives import NextToken

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

config = load_config(None, ["--train-conf.max-batch", "2", "--train-conf.batch-frames", "12000"])
needed = estimate(meta_model(config), config)
model = SteerMoE.from_config(config).train()
batch = _batch(config, 2, longest_feats(config), answers=True)
batch = batch._replace(feats_bfm=torch.randn(batch.feats_bfm.shape))
before = status("VmRSS:")
NextToken()(model, batch).total.backward()
print(needed.train_activations / (status("VmHWM:") - before))
"""


@pytest.mark.slow
def test_the_estimate_against_the_memory_that_the_real_tiny_pair_takes(real_models):
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 2
