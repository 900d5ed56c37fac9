"""A chat's answer, token by token, so that the model's thread can do other work between two of them."""

from __future__ import annotations

from typing import Any, Iterator

from steermoe.calling.grammar import CallGrammar
from steermoe.calling.parse import parse_calls
from steermoe.chat.conversation import MAX_REPEATS
from steermoe.chat.template import ChatTemplate
from steermoe.decode.repeats import loop_start
from steermoe.errors import UserError
from steermoe.serve.chats import Asked, Called
from steermoe.serve.limits import ApiError


def write(model, asked: Asked, talker=None) -> Iterator[tuple | None]:
    """("text", what is new) as it is written, None for a step without; at last ("end", the whole text, calls as (name,
    arguments), OpenAI's finish_reason, usage). Where functions may be called, text comes at the end: it may be a call.

    model: a steermoe.SteerMoE. talker: another LLM that talks. UserError and ApiError as by Conversation.
    """
    conversation = model.conversation(talker=talker)
    llm, system, schemas = conversation.llm, conversation.llm.system, asked.schemas
    if asked.system is not None or schemas:  # none of which may smuggle in control tokens, or marks of audio
        system = system if asked.system is None else conversation.template.check_text(asked.system)
        schemas = _defused(conversation.template, schemas)
        conversation.template = ChatTemplate(llm.tokenizer, system, schemas)
    for turn in asked.turns:
        beside = " ".join(turn.parts) if turn.calls else ""
        if turn.parts and not turn.calls:
            conversation.resume([(turn.role, turn.parts)])
        for call in turn.calls:
            conversation.messages += _called(conversation.template, call, beside, len(conversation.messages))
            beside = ""
        yield None
    places = conversation.template.places(conversation.messages, conversation.spans)
    most = getattr(llm.llm.config.get_text_config(), "max_position_embeddings", None) or len(places) + asked.max_tokens
    if len(places) >= most:
        what = f"the conversation has {len(places)} tokens and audio vectors, the LLM reads {most}"
        raise ApiError(400, what, "messages", "context_length_exceeded")
    guide = _guide(conversation, schemas) if asked.required else None
    tokens: list[int] = []
    said, ended = "", "length"
    while len(tokens) < min(asked.max_tokens, most - len(places)):
        logits_v = conversation.cache.read([*places, *tokens], conversation.audio_nh)
        token = int((guide.allow(logits_v) if guide else logits_v).argmax())
        if token in conversation.stop:
            ended = "stop"
            break
        tokens.append(token)
        if guide:
            guide.accept(token)
        text = llm.decode(tokens).strip()
        cut = min((at for word in asked.stop if (at := text.find(word)) >= 0), default=None)
        if cut is not None or (repeats := loop_start(tokens, MAX_REPEATS)) is not None:
            text, ended = (llm.decode(tokens[:repeats]).strip() if cut is None else text[:cut]), "stop"
            break
        ready = "" if schemas or text.endswith("\ufffd") else _safe(text, asked.stop)
        if ready.startswith(said) and len(ready) > len(said):
            yield "text", ready[len(said) :]
            said = ready
        else:
            yield None
    text = text if tokens else ""
    calls: list[tuple[str, dict]] = []
    if schemas:
        names = [schema["function"]["name"] for schema in schemas]
        beside, found = parse_calls(llm.tokenizer.decode(tokens, skip_special_tokens=False))
        calls = [(call.name, call.arguments) for call in found if call.error is None and call.name in names]
        text, ended = (beside, "tool_calls") if calls else (text, ended)
    if text.startswith(said) and len(text) > len(said):
        yield "text", text[len(said) :]
    usage = {"prompt_tokens": len(places), "completion_tokens": len(tokens), "total_tokens": len(places) + len(tokens)}
    yield "end", text, calls, ended, usage


def _safe(text: str, stop: list[str]) -> str:
    """What cannot be the beginning of a word that ends the answer."""
    held = max((size for word in stop for size in range(len(word)) if size and text.endswith(word[:size])), default=0)
    return text[: len(text) - held].rstrip()


def _called(template: ChatTemplate, call: Called, beside: str, count: int) -> list[dict[str, Any]]:
    """An earlier call and its result, as a conversation holds them: neither may smuggle in control tokens."""
    number = f"call{count:05d}"  # nine characters, as Mistral's template wants
    shown = {"name": template.defuse(call.name), "arguments": _defused(template, call.arguments), "id": number}
    result = {"role": "tool", "name": shown["name"], "tool_call_id": number, "content": template.defuse(call.result or "")}
    return [{"role": "assistant", "content": template.defuse(beside), "call": shown}, result]


def _defused(template: ChatTemplate, value: Any) -> Any:
    if isinstance(value, str):
        return template.defuse(value)
    if isinstance(value, list):
        return [_defused(template, item) for item in value]
    return {template.defuse(key): _defused(template, item) for key, item in value.items()} if isinstance(value, dict) else value


def _guide(conversation, schemas: list[dict]):
    """Makes the answer begin with a call that fits its schema."""
    try:
        grammar = CallGrammar(conversation.llm.tokenizer, conversation.template.call_form(), schemas, conversation.stop)
    except UserError as error:
        raise ApiError(400, f"tool_choice: a call cannot be required here: {error}", "tool_choice") from None
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ApiError(400, f"tools: a schema that cannot be followed: {error}", "tools") from None
    return grammar.begin(required=True)
