"""Frozen LLM weights in 8 and 4 bits: the same model within their precision, gradients through it, less memory."""

import sys

import pytest
import torch
import torch.nn.functional as nnf

import tiny
from steermoe.config import load_config
from steermoe.data.collator import Collator
from steermoe.data.dataset import Example
from steermoe.errors import UserError
from steermoe.llms.causal import CausalLM
from steermoe.llms.quantization import bitsandbytes_config, quantised_linears
from steermoe.memory import module_size
from steermoe.model import SteerMoE
from steermoe.shapes import meta_model
from steermoe.train.objectives import NextToken

KINDS = ["int8", "int4"]


def test_unknown_kinds_are_an_error_before_anything_is_fetched():
    with pytest.raises(UserError, match="llm_conf.quantization: 'int3' is not one of none, int8, int4"):
        CausalLM.from_pretrained("/nowhere", quantization="int3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_missing_package_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=f"{kind} needs the Python package bitsandbytes: pip install bitsandbytes"):
        bitsandbytes_config(kind, torch.bfloat16)


@pytest.fixture()
def base(tmp_path):
    """Wide enough for blocks of 64 weights."""
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    tiny.make_llm(tmp_path, hidden_size=128, intermediate_size=256, head_dim=32)
    return str(tmp_path)


def loss_and_gradient(llm, length=12):
    torch.manual_seed(0)
    vectors = torch.randn(1, length, llm.dim, dtype=torch.bfloat16).requires_grad_()
    ones = torch.ones(1, length, dtype=torch.long)
    logits = llm.logits(llm.hidden(vectors, ones, ones.cumsum(1) - 1)[0, :-1])
    loss = nnf.cross_entropy(logits.float(), torch.arange(length - 1))
    loss.backward()
    return loss.item(), vectors.grad.float().flatten()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_of_the_soft_prompt_stay_close(base, kind):
    plain = CausalLM.from_pretrained(base, dtype="bfloat16")
    packed = CausalLM.from_pretrained(base, dtype="bfloat16", quantization=kind)
    (loss, gradient), (packed_loss, packed_gradient) = loss_and_gradient(plain), loss_and_gradient(packed)
    assert packed_loss == pytest.approx(loss, rel=0.1)
    assert nnf.cosine_similarity(packed_gradient, gradient, 0) > {"int8": 0.95, "int4": 0.8}[kind]
    assert packed.fingerprint == plain.fingerprint  # of the weights that were quantised
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_the_gradient_is_exactly_that_of_the_unpacked_weights(base):
    """Also after forwards without gradients: `from_pretrained` has done one."""
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, unpacked = (CausalLM.from_pretrained(base, dtype="bfloat16", quantization=kind) for kind in ("int4", "none"))
    with torch.no_grad():
        for codes, linear in zip(quantised_linears(packed.llm), quantised_linears(unpacked.llm)):
            linear.weight.copy_(functional.dequantize_4bit(codes.weight.data, codes.weight.quant_state))
    (loss, gradient), (expected_loss, expected) = loss_and_gradient(packed), loss_and_gradient(unpacked)
    assert loss == pytest.approx(expected_loss, rel=1e-2) and nnf.cosine_similarity(gradient, expected, 0) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_is_what_is_stored(base, kind):
    """Parameters are those of the model; bytes are those of the codes, and a few per cent for their scales."""
    packed = CausalLM.from_pretrained(base, dtype="bfloat16", quantization=kind)
    plain = CausalLM.without_weights(packed.llm.config.to_dict() | {"model_type": "llama"}, model=base, dtype="bfloat16")
    planned = CausalLM.without_weights(plain.llm.config.to_dict(), model=base, dtype="bfloat16", quantization=kind)
    assert module_size(packed) == module_size(planned) and module_size(packed)[0] == module_size(plain)[0]
    stored = sum(linear.weight.nbytes for linear in quantised_linears(packed.llm))
    codes = module_size(plain)[1] - sum(linear.weight.nbytes for linear in quantised_linears(plain.llm)) + stored
    assert codes <= module_size(packed)[1] < 1.05 * codes


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_trains_through_it_and_the_frozen_codes_stay(tiny_bases, base, kind):
    words = ["--encoder-conf.model", str(tiny_bases / "whisper"), "--llm-conf.model", base, "--llm-conf.quantization", kind]
    model = SteerMoE.from_config(load_config(None, [*words, "--llm-conf.dtype", "bfloat16"])).train()
    before = {name: tensor.clone() for name, tensor in model.llm.llm.named_parameters()}
    batch = Collator(model.llm, "x ")([Example("a", torch.randn(160, 80), "one two", None)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = NextToken()(model, batch)
        loss.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.llm.llm.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "close", "cosine"), [("int8", 0.05, 0.85), ("int4", 0.05, 0.3)])
def test_the_real_tiny_llm(real_models, kind, close, cosine):
    """The loss of a text and its gradient with respect to the vectors, against bfloat16."""
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    figures = []
    for quantization in ("none", kind):
        llm = CausalLM.from_pretrained("SmolLM2-135M-Instruct", dtype="bfloat16", quantization=quantization)
        ids = torch.tensor([llm.encode("The quick brown fox jumps over the lazy dog, and then it is late in the evening.")])
        vectors, ones = llm.embed(ids).detach().requires_grad_(), torch.ones_like(ids)
        loss = nnf.cross_entropy(llm.logits(llm.hidden(vectors, ones, ones.cumsum(1) - 1)[0, :-1]).float(), ids[0, 1:])
        loss.backward()
        figures.append((loss.item(), vectors.grad.float().flatten(), module_size(llm)))
    (loss, gradient, (count, size)), (packed_loss, packed_gradient, (packed_count, packed_size)) = figures
    print(f"{kind}: loss {loss:.3f} -> {packed_loss:.3f}, cosine {nnf.cosine_similarity(packed_gradient, gradient, 0):.3f}, "
          f"{size / 2**20:.0f} -> {packed_size / 2**20:.0f} MiB")  # fmt: skip
    assert packed_loss == pytest.approx(loss, rel=close) and nnf.cosine_similarity(packed_gradient, gradient, 0) > cosine
    assert packed_count == count and packed_size < 0.65 * size


def test_a_dry_run_needs_no_package(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    tiny_config.llm_conf["quantization"] = "int4"
    assert module_size(meta_model(tiny_config).llm)[1] < module_size(SteerMoE.from_config(load_config(None, [
        "--encoder-conf.model", tiny_config.encoder_conf["model"], "--llm-conf.model", tiny_config.llm_conf["model"],
    ])).llm)[1]  # fmt: skip
