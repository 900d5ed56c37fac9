"""Keeps calls inside the tools' schemas while they are written: a grammar over the LLM's tokens, by llguidance.

Text is free until the LLM begins a call in its own form; from there on only what leads to a known function with fitting arguments
can be written. Where a call is required, the answer begins with one. Shape legend: V the LLM's vocabulary.
"""

from __future__ import annotations

import json
from typing import Sequence

import torch
from torch import Tensor

from steermoe.calling.schema import strict
from steermoe.errors import UserError

# A call as plain JSON, which some LLMs write whatever their template says: at the beginning, in a Markdown fence or in <tools>.
JSON_HEAD = r'/((.|\n)*(```(json)?|<tools>))?\s*\[?\s*\{\s*"name"\s*:\s*"/'
JSON_BETWEEN = r'/"\s*,\s*"(arguments|parameters)"\s*:\s*/'
JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as chat templates write JSON


class CallGrammar:
    """form: how the LLM writes a call, see ChatTemplate.call_form. schemas: of the tools. stop: tokens that end an answer.

    UserError if the package is not installed, or if it cannot read the tokenizer or a schema.
    """

    def __init__(self, tokenizer, form: tuple[str, str, str], schemas: Sequence[dict], stop: set[int]):
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise UserError("--constrained true needs the package llguidance: pip install llguidance") from None
        try:
            self.vocabulary = from_tokenizer(tokenizer, eos_token=sorted(stop))
        except Exception as error:  # slow tokenizers, and formats that it does not know
            name = tokenizer.name_or_path
            raise UserError(f"--constrained true: llguidance cannot read the tokenizer of {name}: {error}") from None
        self.matcher = LLMatcher
        self.free, self.required = (
            LLMatcher.grammar_from_lark(call_lark(tokenizer, form, schemas, required)) for required in (False, True)
        )
        if error := LLMatcher.validate_grammar(self.free, self.vocabulary):
            raise UserError(f"--constrained true: llguidance cannot read the tools' schemas: {error}")

    def begin(self, required: bool = False) -> "Guide":
        """For one answer. required: it begins with a call."""
        return Guide(self.matcher(self.vocabulary, self.required if required else self.free))


class Guide:
    """The grammar's state within one answer."""

    def __init__(self, matcher):
        self.matcher = matcher

    def allow(self, logits_v: Tensor) -> Tensor:
        """(V,) -> (V,) with -inf where the grammar does not go on; V may be larger than the tokenizer's vocabulary."""
        if self.matcher.is_stopped():
            return logits_v
        bits = torch.frombuffer(bytearray(self.matcher.compute_bitmask()), dtype=torch.uint8)
        allowed_v = (bits[:, None] >> torch.arange(8) & 1).flatten()[: len(logits_v)].bool().to(logits_v.device)
        allowed_v = torch.nn.functional.pad(allowed_v, (0, len(logits_v) - len(allowed_v)))
        return logits_v.masked_fill(~allowed_v, -torch.inf)

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)


def call_lark(tokenizer, form: tuple[str, str, str], schemas: Sequence[dict], required: bool = False) -> str:
    """A grammar in llguidance's Lark: free text, and any number of calls in it; or a call and nothing else."""
    before, between, after = form
    trigger = before.partition("{")[0].strip() or before
    begin = before.partition(trigger)[2]
    trigger_elements = _elements(tokenizer, trigger)
    lazy = "" if trigger_elements.startswith("<") else "[lazy]"
    lines = ["%llguidance {}"]
    if required:
        lines.append(f"start: {trigger_elements} call")
    else:
        lines += ["start: (head call | json_head json)* TEXT", f"head{lazy}: TEXT {trigger_elements}", r"TEXT: /(.|\n)*/"]
        lines += [f"json_head[lazy]: {JSON_HEAD}", "json: " + " | ".join(f"json_{index}" for index in range(len(schemas)))]
    lines.append("call: " + " | ".join(f"call_{index}" for index in range(len(schemas))))
    for index, function in enumerate(schema["function"] for schema in schemas):
        parameters = strict(function["parameters"])
        arguments = json.dumps(parameters | {"x-guidance": JSON_FORM}, ensure_ascii=False)
        opening = _elements(tokenizer, f"{begin}{function['name']}{between}")
        lines.append(f"call_{index}: {opening} %json {arguments} {_elements(tokenizer, after)}")
        if not required:
            plain = json.dumps(parameters, ensure_ascii=False)
            lines.append(rf"json_{index}: {json.dumps(function['name'])} {JSON_BETWEEN} %json {plain} /\s*\}}/")
    return "\n".join(lines) + "\n"


def _elements(tokenizer, text: str) -> str:
    """Text as Lark: strings, and `<[id]>` for tokens that are special to the tokenizer and so no text to the grammar."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    elements, plain = [], ""
    while text:
        token = max((token for token in added if text.startswith(token)), key=len, default=None)
        if token is None:
            plain, text = plain + text[0], text[1:]
            continue
        elements += [json.dumps(plain)] * bool(plain) + [f"<[{added[token]}]>"]
        plain, text = "", text[len(token) :]
    return " ".join(elements + [json.dumps(plain)] * bool(plain))
