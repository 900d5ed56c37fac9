"""Tiny random models of every family, with a chat template of the family's form: prompt, end, embeddings, greedy answers."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch

import tiny
from steermoe.config import DecodeConf
from steermoe.decode.cache import roomy_cache
from steermoe.decode.search import greedy_search
from steermoe.errors import UserError
from steermoe.llms.causal import CausalLM
from steermoe.masks import positions_from_mask
from steermoe.merge import Merged

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
GEMMA = (
    "{{ bos_token }}" + NO_SYSTEM + "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + NO_SYSTEM + "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nhelp<|im_end|>\n{% endif %}" + tiny.CHATML
)
QWEN3 = tiny.CHATML.removesuffix("{% endif %}") + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"


class Family(NamedTuple):
    kind: str  # transformers' model type
    settings: dict
    template: str
    specials: list[str]
    bos: str | None
    eos: str  # the tokenizer's
    ends: list[str]  # of the generation configuration
    end: str  # what the template writes after an answer
    before: str  # the prompt around the audio
    after: str


CHAT = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TURNS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
GEMMA_FORM = (GEMMA, TURNS, "<bos>", "<eos>", ["<eos>", "<end_of_turn>"], "<end_of_turn>", "<bos><start_of_turn>user\n",
              " say<end_of_turn>\n<start_of_turn>model\n")  # fmt: skip
SCALAR = {"query_pre_attn_scalar": 8, "sliding_window": 8}
FAMILIES = {
    "gemma": Family("gemma", {}, *GEMMA_FORM),
    "gemma2": Family("gemma2", SCALAR, *GEMMA_FORM),
    "gemma3": Family("gemma3_text", SCALAR, *GEMMA_FORM),
    "mistral": Family("mistral", {"sliding_window": 8, "tie_word_embeddings": False}, MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>",
                      "</s>", ["</s>"], "</s>", "<s>[INST] ", " say [/INST]"),
    "llama3": Family("llama", {"tie_word_embeddings": False}, LLAMA3, HEADERS, "<|begin_of_text|>", "<|eot_id|>",
                     ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>",
                     "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n<|eot_id|>"
                     "<|start_header_id|>user<|end_header_id|>\n\n",
                     " say<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    "qwen2.5-7b": Family("qwen2", {"tie_word_embeddings": False}, QWEN25, CHAT, None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"],
                         "<|im_end|>", "<|im_start|>system\nhelp<|im_end|>\n<|im_start|>user\n",
                         " say<|im_end|>\n<|im_start|>assistant\n"),
    "qwen2.5-3b": Family("qwen2", {"tie_word_embeddings": True}, QWEN25, CHAT, None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"],
                         "<|im_end|>", "<|im_start|>system\nhelp<|im_end|>\n<|im_start|>user\n",
                         " say<|im_end|>\n<|im_start|>assistant\n"),
    "qwen3": Family("qwen3", {}, QWEN3, [*CHAT, "<think>", "</think>"], None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"],
                    "<|im_end|>", "<|im_start|>user\n", " say<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "smollm": Family("llama", {}, tiny.CHATML, CHAT, None, "<|im_end|>", ["<|im_end|>"], "<|im_end|>", "<|im_start|>user\n",
                     " say<|im_end|>\n<|im_start|>assistant\n"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name), family) for name, family in FAMILIES.items()}


def make(folder, family: Family):
    """A model's folder as its publisher lays it out: tokenizer with the family's tokens, template, generation configuration."""
    tokenizer = tiny.make_tokenizer(folder)
    model = tiny.make_llm(folder, kind=family.kind, vocab_size=len(tokenizer) + len(family.specials), **family.settings)
    tokenizer.add_special_tokens({"additional_special_tokens": family.specials})
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template = family.eos, family.bos, family.template
    if family.bos:  # as theirs do, it begins every plain text with BOS
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.bos_token_id)]
        )
    tokenizer.save_pretrained(folder)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(family.ends)
    model.generation_config.bos_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=FAMILIES)
def pair(request, folders):
    return CausalLM.from_pretrained(str(folders[request.param]), dtype="float32"), FAMILIES[request.param]


def test_the_prompt_is_the_templates_own(pair):
    llm, family = pair
    template = llm.template("<audio> say")
    text = [llm.tokenizer.decode(ids) for ids in template[:2]]
    assert text == [family.before, family.after]
    ids = template.prefix_ids + template.suffix_ids
    assert family.bos is None or (ids[0] == llm.tokenizer.bos_token_id and ids.count(ids[0]) == 1)  # BOS once, in front
    assert all(llm.tokenizer.convert_tokens_to_ids(token) in ids for token in family.specials if token in "".join(text))


def test_the_bare_prompt_begins_as_the_tokenizer_begins_a_text(pair):
    llm, family = pair
    llm.chat = False
    template = llm.template("<audio> say")
    assert template.prefix_ids == ([llm.tokenizer.bos_token_id] if family.bos else [])
    assert llm.tokenizer.decode(template.suffix_ids) == " say" and template.end_id == llm.tokenizer.eos_token_id


def test_answers_end_where_the_family_ends_them(pair):
    llm, family = pair
    assert llm.template("x").end_id == llm.tokenizer.convert_tokens_to_ids(family.end)
    assert llm.stop_ids() == set(llm.tokenizer.convert_tokens_to_ids([*family.ends, family.end, family.eos]))


def test_a_system_message_or_a_clear_refusal(pair):
    llm, family = pair
    llm.system = "be brief"
    if NO_SYSTEM in family.template:
        with pytest.raises(UserError, match="no system role.*llm_conf.system to null"):
            llm.template("<audio> say")
        llm.system = ""
        assert llm.tokenizer.decode(llm.template("<audio> say").prefix_ids) == family.before
    else:
        prefix = llm.tokenizer.decode(llm.template("<audio> say").prefix_ids)
        assert "be brief" in prefix and "help" not in prefix


def test_embeddings_and_logits_are_what_the_model_makes_of_ids(pair):
    """Gemma scales its embeddings by sqrt(H) where it looks them up: `embed` has it done, and vectors beside them are not scaled again."""
    llm, family = pair
    ids = torch.tensor([[5, 9, 33, 70, 71, 72, 80, 81, 90, 95, 12]])  # longer than the sliding windows
    ones = torch.ones_like(ids)
    vectors = llm.embed(ids)
    plain = llm.llm.get_input_embeddings().weight[ids]
    assert torch.allclose(vectors, plain * (llm.dim**0.5 if "gemma" in family.kind else 1.0))
    with torch.no_grad():
        theirs = llm.llm(input_ids=ids, attention_mask=ones).logits
        ours = llm.logits(llm.hidden(vectors, ones, ones.cumsum(1) - 1))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_rows_of_a_batch_are_as_if_alone(pair, left):
    """End to end without padding, where every layer looks at all that was said before; masked, where a window slides."""
    llm, family = pair
    assert llm.packs == ("sliding_window" not in family.settings)
    rows = [torch.tensor([[5, 9, 33, 70, 71, 72, 80, 81, 90, 95, 12]]), torch.tensor([[7, 12, 50]])]
    lens = torch.tensor([[11], [3]])
    mask = torch.arange(11) >= 11 - lens if left else torch.arange(11) < lens
    ids = torch.zeros(2, 11, dtype=torch.long).index_put((mask,), torch.cat(rows, 1)[0])
    cache = roomy_cache(llm.llm.config)
    with torch.no_grad():
        together = llm.hidden(llm.embed(ids), mask, positions_from_mask(mask), cache)
        for row, alone in enumerate(rows):
            assert torch.allclose(together[row, mask[row]], llm.hidden(llm.embed(alone))[0], atol=1e-5)
        if left:  # a step goes on from what is cached
            longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.bool)], 1)
            step = llm.hidden(llm.embed(torch.tensor([[20], [21]])), longer, lens, cache)
            for row, alone in enumerate(rows):
                after = llm.hidden(llm.embed(torch.cat([alone, torch.tensor([[20 + row]])], 1)))
                assert torch.allclose(step[row, 0], after[0, -1], atol=1e-5)


def test_output_layer_tied_or_not(pair):
    llm, family = pair
    tied = llm.llm.get_output_embeddings().weight.data_ptr() == llm.llm.get_input_embeddings().weight.data_ptr()
    assert tied == family.settings.get("tie_word_embeddings", True)


def test_greedy_answers_are_those_of_transformers(pair):
    llm = copy.deepcopy(pair[0])
    with torch.no_grad():  # layers that outweigh the embedding that passes by them, or a tied model only repeats its last token
        for name, parameter in llm.llm.named_parameters():
            if "layers" in name and parameter.dim() > 1:
                parameter.mul_(6)
    rows = [[*template.prefix_ids, *template.suffix_ids] for template in map(llm.template, ("<audio> say", "<audio> and now the other"))]
    longest = max(map(len, rows))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]).bool()
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    layout = Merged(None, mask, positions_from_mask(mask), None)
    with torch.no_grad():
        ours = greedy_search(llm, llm.embed(ids), layout, [14, 14], DecodeConf(max_repeats=0))
    for hypothesis, row in zip(ours, rows):
        settings = dict(max_new_tokens=14, do_sample=False, repetition_penalty=1.0, eos_token_id=sorted(llm.stop_ids()), pad_token_id=0)
        theirs = llm.llm.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row)).long(), **settings)[0, len(row) :].tolist()
        assert hypothesis.tokens == [token for token in theirs if token not in llm.stop_ids()]
    assert len(set(ours[0].tokens + ours[1].tokens)) > 1  # they do say something
