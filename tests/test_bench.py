"""The bench's references compute what ours computes, in the same window mode; its tables; each path's command."""

import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import tiny
from steermoe.checkpoint import save_adapter
from steermoe.config import config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.model import SteerMoE
from steermoe.train.objectives import NextToken

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))
import dump  # noqa: E402
import references  # noqa: E402
import train_step  # noqa: E402
import turns  # noqa: E402


@pytest.fixture()
def pair(tiny_config, tmp_path):
    """A model over 30 s with the paper's bare prompt, and a batch: [audio][prompt][answer][end]."""
    tiny_config.encoder_conf["window"], tiny_config.llm_conf["chat"] = "full30", False
    model = SteerMoE.from_config(tiny_config).train()
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [160, 60, 233]))
    return model, Collator(model.llm, "hear: ")([data[index] for index in range(3)])


def test_loss_and_gradients_equal_the_straightforward_reference(pair):
    ours, batch = pair
    reference = references.Straightforward(ours)
    loss = NextToken()(ours, batch)
    mean = loss.total / loss.units
    mean.backward()
    expected = reference.loss(references.pad_feats(ours, batch), batch)
    expected.backward()
    assert abs(float(mean.detach()) - float(expected.detach())) < 1e-5
    layers, dim, experts = ours.steering.router_weight.shape
    router = reference.router.weight.grad.view(layers, experts, dim).transpose(1, 2)
    for one, other in (
        (ours.steering.experts.grad, reference.experts.grad),
        (ours.steering.scales.grad, reference.scales.grad),
        (ours.steering.router_weight.grad, router),
        (ours.projector.linear.weight.grad, reference.projector.weight.grad),
    ):
        assert other.abs().max() > 0 and torch.allclose(one, other, atol=1e-5)


def test_the_authors_attend_to_448_places_of_text(pair):
    ours, batch = pair
    authors, feats = references.Authors(ours), references.pad_feats(ours, batch)
    seen = {}
    authors.llm.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    loss = authors.loss(feats, batch)
    assert seen["inputs_embeds"].shape[1] == 375 + 448 and seen["attention_mask"].all()
    plain = references.Straightforward(ours).loss(feats, batch)  # no answer looks ahead, so the padding changes nothing
    assert torch.allclose(loss, plain, atol=1e-5)


def test_decoding_equals_transformers_greedy_token_by_token(pair):
    from steermoe.config import DecodeConf
    from steermoe.decode.search import greedy_search

    ours, batch = pair
    prompt = len(ours.llm.template("hear: ").suffix_ids)
    batch = batch._replace(text_ids_bs=batch.text_ids_bs[:, :prompt], text_lens_b=torch.full((3,), prompt))
    ours.llm.stop_ids, ours.llm.llm.generation_config.eos_token_id = set, None
    with torch.no_grad():
        found = greedy_search(ours.llm, *ours.soft_prompt(batch, left_pad=True), [12, 7, 9], DecodeConf(max_repeats=0))
    theirs = references.Straightforward(ours).generate(references.pad_feats(ours, batch), batch.text_ids_bs, 12).tolist()
    assert [h.tokens for h in found] == [theirs[0], theirs[1][:7], theirs[2][:9]]


def test_features_equal_the_extractors(tmp_path):
    data = dump.invent_corpus(tmp_path / "data", [1.0, 2.3])
    args = dump.job_args(data, tmp_path / "one", 1)
    dump.our_dump(args)()
    dump.merge_shards(args)
    computed, stored = dump.largest_difference(args)
    assert computed < 1e-6 and stored < 1e-4


def test_operations_are_counted_from_the_shapes():
    left, right = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    assert train_step.count_flops(lambda: (left @ right).sum().backward()) == 2 * (2 * 3 * 5 * 7)
    q, k = torch.randn(1, 2, 6, 4, requires_grad=True), torch.randn(1, 1, 6, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert train_step.count_flops(lambda: attend(q, k, k, enable_gqa=True).sum().backward()) == 7 * (2 * 2 * 6 * 6 * 4)


def test_turns_and_their_table(capsys, monkeypatch):
    calls = []

    def too_large():
        raise MemoryError

    variants = {"ours": lambda: calls.append("ours"), "other": lambda: calls.append("other"), "large": too_large}
    times = turns.take_turns(variants, 2)
    assert calls == ["ours", "other"] * 3 and len(times["ours"].wall) == 2 and times["large"].wall == []
    seconds = {"ours": [1.0, 2.0, 1.0], "other": [4.0, 4.0, 6.0], "large": []}
    times = {name: turns.Times(values, []) for name, values in seconds.items()}
    monkeypatch.setattr(turns, "machine", lambda: "a machine")
    table = turns.rows(times, "ours", "wall", {"x real time": lambda median: f"{10 / median:.0f}"})
    turns.print_report("Title", table, ["a note"], Namespace(markdown=True, rounds=3))
    printed = capsys.readouterr().out
    assert "| variant | seconds (wall) | x ours | x real time |\n|---|---|---|---|" in printed
    assert "| other | 4 (4 to 6) | 4.00 (2.00 to 6.00) | 2 |" in printed
    assert "| large | out of memory | out of memory |  |" in printed
    assert "a machine" in printed and "- a note" in printed
    turns.print_report("Title", table, [], Namespace(markdown=False, rounds=3))
    assert "other    4 (4 to 6)      4.00 (2.00 to 6.00)" in capsys.readouterr().out


SMALL = {  # in place of the real sizes
    "whisper-tiny.en": {"n_mels": 80, "d_model": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "positions": 1500},
    "FireRedTeam/FireRedASR-AED-L": {"sizes": {"dim": 16, "layers": 2, "heads": 2}},
}
LLM = {"model_type": "qwen2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "num_key_value_heads": 1, "vocab_size": 50}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "variants", "note"),
    [
        ("train-step --shapes tiny", "ours bfloat16|ours float32|authors|straightforward float32", "TFLOP"),
        ("train-step --shapes c7b", "ours bfloat16|straightforward bfloat16", "TFLOP"),
        ("decode --shapes tiny --utterances 2", "ours bfloat16|ours bfloat16 full30|authors", "2 utterances"),
        ("decode --shapes c7b --utterances 2", "ours bfloat16|straightforward float32", "2 utterances"),
        ("dump --utterances 2", "ours|transformers|ours, two jobs", "MB an hour of audio"),
    ],
)
def test_every_path_prints_its_table(monkeypatch, capsys, command, variants, note):
    import decode
    import pair

    monkeypatch.setattr(pair, "known_sizes", lambda model: dict(SMALL.get(model, LLM)))
    monkeypatch.setattr(decode, "corpus_seconds", lambda count: [1.0, 2.0][:count])
    monkeypatch.setattr(dump, "corpus_seconds", lambda count: [1.0, 2.0][:count])
    monkeypatch.setattr(train_step, "SECONDS", [1.0, 1.5])
    monkeypatch.setitem(train_step.PEAK_SIZE, "cpu", 32)
    printed = bench(capsys, *command.split(), "--clock", "wall")
    assert all(f"| {variant} | " in printed for variant in variants.split("|")) and note in printed and "git " in printed


def bench(capsys, *words) -> str:
    """What it prints, as Markdown."""
    threads = torch.get_num_threads()
    runpy.run_path(str(BENCH / "__main__.py"))["main"]([*words, "--rounds", "1", "--markdown"])
    torch.set_num_threads(threads)
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "variants", "note"),
    [
        ("score --utterances 50", "ours|ours, counts only", "50 utterances"),
        ("load", "ours|imports|transformers", "the call of load_model: "),
    ],
)
def test_whole_commands_take_turns(real_models, capsys, command, variants, note):
    printed = bench(capsys, *command.split())
    assert all(f"| {variant} | " in printed for variant in variants.split("|")) and note in printed


def test_a_trained_adapter_searches_in_each_of_its_ways(tiny_config, tmp_path, capsys):
    config = config_from_dict(tiny_config.to_dict() | {"projector": "token", "projector_conf": {"frames_conf": {"kernel": 1}}})
    config.decode_conf.beam, config.decode_conf.ctc_weight = 3, 0.25
    save_adapter(tmp_path / "exp" / "adapter.safetensors", SteerMoE.from_config(config), config, 1, {})
    data = tiny.make_dataset(tmp_path, [50, 80, 123])
    printed = bench(capsys, "decode", "--data", str(data), "--adapter", str(tmp_path / "exp"), "--utterances", "2")
    for variant in ("greedy by the LLM", "CTC alone", "as configured: beam 3, ctc_weight 0.25"):
        assert f"| {variant} | " in printed
    assert "exp: 2 utterances, 1 s of audio" in printed


def test_growth_compares_with_a_tenth(monkeypatch, capsys):
    import growth

    monkeypatch.setattr(growth, "in_a_process", growth.measure)
    monkeypatch.setattr(growth, "corpus_seconds", lambda count: [1.0, 2.0] * (count // 2))
    printed = bench(capsys, "growth", "--utterances", "4000")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    found = [(row[0], row[1], bool(row[4])) for row in rows[1:]]
    assert found == [
        ("dump", "2", False), ("dump", "20", True), ("decode", "20", False), ("decode", "200", True),
        ("training", "400", False), ("training", "4,000", True),
    ]  # fmt: skip
    assert rows[-1][2] == "1.7" and 50 < int(rows[-1][5]) < 20_000


def test_growth_measures_a_process_of_its_own(tmp_path):
    import growth

    growth.write_corpora(tmp_path, {"dump": [], "decode": [], "training": [20]}, [1.0] * growth.RECORDINGS)
    found = growth.in_a_process("training", str(tmp_path), 20)
    assert found.keys() == {"wall", "cpu", "memory"} and 0 < found["wall"] < 60


def test_the_command_names_its_paths():
    shown = subprocess.run([sys.executable, str(BENCH)], capture_output=True, text=True)
    paths = ("train-step", "decode", "dump", "score", "load", "growth")
    assert shown.returncode == 2 and all(path in shown.stdout for path in paths)
