"""The LLM's own chat template, cut open where the audio goes.

A sequence is  [prefix][P_audio][suffix][answer][end]: prefix and suffix hold the template, the prompt's words around the
placeholder, and the assistant's header; `end` is the token that the template itself writes after an answer.
"""

from __future__ import annotations

import functools
import re
from datetime import datetime
from typing import NamedTuple

import jinja2

from steermoe.errors import UserError

AUDIO = "<audio>"
TODAY = datetime(2024, 7, 26)  # what LLaMA 3's template falls back to
NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_ANSWER = "(answer)"


class PromptTemplate(NamedTuple):
    prefix_ids: list[int]
    suffix_ids: list[int]
    end_id: int


def make_template(tokenizer, prompt: str, chat: bool, system: str | None = None) -> PromptTemplate:
    """prompt: the user's words, with `<audio>` where the audio goes (in front of them if it is absent, as in the paper).

    chat false: the bare words, the end is the tokenizer's EOS. UserError if the placeholder occurs twice or the template loses it.
    """
    if AUDIO not in prompt:
        prompt = AUDIO + prompt
    if prompt.count(AUDIO) > 1:
        raise UserError(f"prompt {prompt!r}: {AUDIO} may stand in it once")
    if special := next((token for token in tokenizer.all_special_tokens if token in prompt), None):
        raise UserError(f"prompt {prompt!r}: {special} is a control token of the LLM; take it out")
    rendered = _render(tokenizer, prompt, system) if chat else prompt
    if rendered.count(AUDIO) != 1:
        raise UserError(f"the chat template of {tokenizer.name_or_path} does not keep the user's words; set llm_conf.chat: false")
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in rendered.split(AUDIO))
    if not chat and tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:
        before = [tokenizer.bos_token_id, *before]  # the tokenizer of LLaMA 2 and the like starts every text with it
    end = end_token(tokenizer, chat)
    if not before and not after:
        before = [end]  # the token between texts: a prompt of no token at all could begin no answer where nothing is heard
    return PromptTemplate(before, after, end)


def end_token(tokenizer, chat: bool) -> int:
    """The token after an answer: what the chat template writes there, else the tokenizer's EOS."""
    end = _template_end(tokenizer) if chat else None
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer names no EOS token; add eos_token to its tokenizer_config.json")
    return end


def stop_tokens(tokenizer, generation_config, chat: bool) -> set[int]:
    named = getattr(generation_config, "eos_token_id", None)
    named = named if isinstance(named, (list, tuple)) else [named]
    return {token for token in [*named, tokenizer.eos_token_id, end_token(tokenizer, chat)] if token is not None}


def _render(tokenizer, prompt: str, system: str | None) -> str:
    user = [{"role": "user", "content": prompt}]
    try:
        messages = user if system is None else [{"role": "system", "content": system}, *user]
        return apply_template(tokenizer, messages, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        if system == "":  # a template without a system role has no default system message to be rid of
            return apply_template(tokenizer, user, add_generation_prompt=True)
        name = tokenizer.name_or_path
        raise UserError(f"the chat template of {name} refuses these messages ({error}); set llm_conf.system to null") from None


def apply_template(tokenizer, messages: list[dict], **settings) -> str:
    """date_string and calls of strftime_now: templates that write today's date get one that stays, so that training and decoding
    agree. enable_thinking: Qwen3's switch. Templates that do not know a variable ignore it.
    """
    variables = {"enable_thinking": False, "date_string": TODAY.strftime("%d %b %Y")}
    template = NOW.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **variables, **settings)


@functools.lru_cache(maxsize=16)
def _template_end(tokenizer) -> int | None:
    turns = [{"role": "user", "content": "(question)"}, {"role": "assistant", "content": _ANSWER}]
    rendered = apply_template(tokenizer, turns)
    ids = tokenizer(rendered.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder) else None
