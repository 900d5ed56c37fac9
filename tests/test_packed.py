"""A packed LLM says the same to the last bit, and refuses to be learnt through."""

from __future__ import annotations

import copy

import pytest
import torch

from steermoe.checkpoint import load_model, save_adapter
from steermoe.decode.cache import roomy_cache
from steermoe.llms import packed
from steermoe.llms.packed import PackedLinear, pack

needs_bfloat16 = pytest.mark.skipif(not packed.supported(), reason="oneDNN has no bfloat16 on this processor")


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(rows, bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 200, bias=bias, dtype=torch.bfloat16)
    vectors = torch.randn(2, rows, 96, dtype=torch.bfloat16)
    packed = PackedLinear(linear)
    with torch.no_grad():
        assert torch.equal(packed(vectors), linear(vectors))
    assert torch.equal(packed.weight, linear.weight)


@needs_bfloat16
def test_a_packed_llm_says_the_same(tiny_model):
    llm = copy.deepcopy(tiny_model.llm).to(torch.bfloat16)
    ids, said = torch.tensor([[5, 6, 7, 8]]), []
    for _ in range(2):
        cache = roomy_cache(llm.llm.config)
        with torch.no_grad():
            prompt = llm.hidden(llm.embed(ids), torch.ones_like(ids), torch.arange(4)[None], cache)
            step = llm.hidden(llm.embed(ids[:, :1]), torch.ones(1, 5), torch.tensor([[4]]), cache)
            said.append([llm.logits(prompt[0]), llm.logits(step[0])])
        llm.pack()
    assert not any(type(module) is torch.nn.Linear for module in llm.modules())
    assert all(torch.equal(one, other) for one, other in zip(*said))
    with pytest.raises(RuntimeError, match="no gradient passes"):
        llm.hidden(llm.embed(ids).requires_grad_())


def test_what_cannot_be_packed_stays(monkeypatch):
    float32 = torch.nn.Sequential(torch.nn.Linear(4, 4))
    pack(float32)
    monkeypatch.setattr(packed, "supported", lambda: False)
    bfloat16 = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16))
    pack(bfloat16)
    assert type(float32[0]) is type(bfloat16[0]) is torch.nn.Linear


@needs_bfloat16
def test_what_is_loaded_to_decode_is_packed(tiny_config, tmp_path):
    from steermoe.model import SteerMoE

    tiny_config.llm_conf["dtype"] = "bfloat16"
    save_adapter(tmp_path / "adapter.safetensors", SteerMoE.from_config(tiny_config), tiny_config, 0, {})
    model, _ = load_model(tmp_path / "adapter.safetensors")
    assert any(isinstance(module, PackedLinear) for module in model.llm.modules())
    assert not any(isinstance(module, PackedLinear) for module in model.encoder.modules())
