"""The text side is untouched: what the LLM answers to text, and its weights, with an adapter loaded and after hearing audio."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from steermoe.checkpoint import load_model, save_adapter
from steermoe.config import DecodeConf, config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import Example
from steermoe.decode.decoder import decode_batch
from steermoe.fetch import fingerprint
from steermoe.llms.packed import PackedLinear
from steermoe.model import SteerMoE

PROMPTS = ["What is the capital of France?", "Count from one to five.", "Repeat: steering", ""]
TOKEN = {"projector": "token", "projector_conf": {"units": "bytes"}, "objective": "joint"}


def plain_llm(path: Path, dtype: torch.dtype):
    """The model as transformers loads it, with nothing of this project around it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@torch.no_grad()
def answers(llm, tokenizer, max_tokens: int) -> list[list[int]]:
    """Greedy answers to PROMPTS by transformers' own generation, token ids."""
    found = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        row = llm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        found.append(row[0, ids.shape[1] :].tolist())
    return found


@torch.no_grad()
def facts(llm) -> tuple[torch.Tensor, dict[str, str]]:
    """Logits of a text, and SHA-256 of every tensor of the model."""
    packed = {f"{name}.weight": module.weight for name, module in llm.named_modules() if isinstance(module, PackedLinear)}
    tensors = {name: tensor.contiguous().view(torch.uint8).numpy() for name, tensor in (llm.state_dict() | packed).items()}
    hashes = {name: hashlib.sha256(tensor).hexdigest() for name, tensor in tensors.items()}
    return llm(torch.arange(20, 60)[None]).logits, hashes


def hear(model: SteerMoE, conf: DecodeConf) -> list[list[int]]:
    torch.manual_seed(4)
    examples = [Example(f"u{frames}", torch.randn(frames, 80) / 2, "", None) for frames in (60, 130)]
    batch = Collator(model.llm, "Repeat: <audio>", answers=False)(examples)
    return [hypothesis.tokens for hypothesis in decode_batch(model, batch, [0.6, 1.3], conf)]


def check(config, path: Path, adapter: Path, confs: list[DecodeConf], max_tokens: int) -> None:
    fresh = SteerMoE.from_config(config)
    with torch.no_grad():
        for parameter in (*fresh.steering.parameters(), *fresh.projector.parameters()):
            parameter.normal_(std=0.05)
    save_adapter(adapter, fresh, config, 1, {})
    plain = plain_llm(path, fresh.llm.llm.dtype)
    wanted, (logits, hashes) = answers(plain, fresh.llm.tokenizer, max_tokens), facts(plain)
    assert len({tuple(answer) for answer in wanted}) > 1
    model, _ = load_model(adapter)
    heard = []
    for conf in (None, *confs, *confs[:1]):  # with the adapter loaded; then after each kind of search
        if conf:
            heard.append(hear(model, conf))
        assert answers(model.llm.llm, model.llm.tokenizer, max_tokens) == wanted
        found_logits, found_hashes = facts(model.llm.llm)
        assert torch.equal(found_logits, logits) and found_hashes == hashes
    assert heard[0] == heard[-1]  # and text between two recordings changes nothing either
    assert model.llm.fingerprint == fresh.llm.fingerprint == fingerprint(path)
    assert not any(parameter.requires_grad for parameter in model.llm.parameters())


@pytest.mark.parametrize(
    ("keys", "confs"),
    [
        ({}, [DecodeConf(max_tokens=8), DecodeConf(max_tokens=8, beam=2)]),
        (TOKEN, [DecodeConf(max_tokens=8, ctc_weight=1.0), DecodeConf(max_tokens=8, ctc_weight=0.5, beam=2)]),
    ],
)
def test_a_tiny_pair(tiny_bases, tmp_path, keys, confs):
    roles = {"encoder_conf": {"model": str(tiny_bases / "whisper")}, "llm_conf": {"model": str(tiny_bases / "llm")}}
    config = config_from_dict({role: conf | {"dtype": "float32"} for role, conf in roles.items()} | keys)
    check(config, tiny_bases / "llm", tmp_path / "adapter.safetensors", confs, 8)


@pytest.mark.slow
def test_the_real_pair(real_models, tmp_path):
    from steermoe.config import load_config

    best = Path(__file__).resolve().parents[1] / "egs/librispeech/conf/train_whisper_best.yaml"
    confs = [DecodeConf(max_tokens=8), DecodeConf(max_tokens=8, ctc_weight=1.0), DecodeConf(max_tokens=8, ctc_weight=0.5, beam=2)]
    check(load_config(best), real_models / "SmolLM2-135M-Instruct", tmp_path / "adapter.safetensors", confs, 16)
