"""A whole conversation through the LLM's own chat template, cut open wherever audio goes.

Every piece of audio has a mark, `<audio 0>`, `<audio 1>`, …, where it stands in its message. The conversation is rendered as
text, cut at the marks, and each mark becomes the vectors of its audio. What a template knows of tools is found out by trying it.
"""

from __future__ import annotations

import json
import re
from typing import Sequence

import jinja2

from steermoe.calling.parse import encodable
from steermoe.errors import UserError
from steermoe.llms.template import apply_template, end_token

MARK = re.compile(r"<audio (\d+)>")
TAG = re.compile(r"<\S+>|\[\S+\]")  # of the added tokens those that are not white space or words
HERMES = ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")  # what a template without a form of its own is taught
HOW_TO_CALL = (
    "You can call these functions:\n<tools>\n{schemas}\n</tools>\nTo call one, write nothing but\n<tool_call>\n"
    '{{"name": "<function>", "arguments": {{<arguments as JSON>}}}}\n</tool_call>\nYou then get its result, and answer with it.'
)
_NAME, _KEY, _VALUE, _RESULT = "probe_function", "probe_key", "probe_value", "probe_result"
_USER = {"role": "user", "content": "probe"}
_TOOL = {"role": "tool", "name": _NAME, "tool_call_id": "call00000", "content": _RESULT}


class ChatTemplate:
    """system: the system message; None: the template's own. schemas: of the tools, as transformers' get_json_schema gives them.

    Messages have role, content, and for an assistant's call also `call` (name, arguments, id); results have the role tool.
    """

    def __init__(self, tokenizer, system: str | None = None, schemas: Sequence[dict] = ()):
        if not tokenizer.chat_template:
            raise UserError(f"{tokenizer.name_or_path}: has no chat template, which talking needs; take an instruct model")
        self.tokenizer, self.schemas = tokenizer, list(schemas)
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if TAG.fullmatch(token.content)]
        self.control = sorted({*tokenizer.all_special_tokens, *added})
        function = {"name": _NAME, "description": _NAME, "parameters": {"type": "object", "properties": {}}}
        probe = {"type": "function", "function": function}
        self.lists_tools = _NAME in self._try([_USER], tools=[probe])
        self.writes_calls = all(word in self._try([_USER, _call(_probe_call()), _TOOL]) for word in (_NAME, _VALUE, _RESULT))
        plain = [_USER, {"role": "assistant", "content": "probe"}, {"role": "tool", "content": _RESULT}]
        self.tool_role = _RESULT in self._try(plain)
        taught = ""
        if self.schemas and not self.lists_tools:
            taught = HOW_TO_CALL.format(schemas="\n".join(json.dumps(schema, ensure_ascii=False) for schema in self.schemas))
        self.system = "\n\n".join(part for part in (system, taught) if part) or system
        self.before_user = ""  # what a template without a system role gets in front of the first user message
        if self.system is not None and not self._try([{"role": "system", "content": self.system}, _USER]):
            self.before_user, self.system = f"{self.system}\n\n" if self.system else "", None

    def render(self, messages: list[dict]) -> str:
        """Everything up to where the assistant's next answer begins. UserError if the template refuses the messages."""
        shown = [self._shown(message) for message in messages]
        if self.before_user:
            shown[0] = shown[0] | {"content": self.before_user + shown[0]["content"]}
        if self.system is not None:
            shown.insert(0, {"role": "system", "content": self.system})
        tools = {"tools": self.schemas} if self.schemas and self.lists_tools else {}
        try:
            return apply_template(self.tokenizer, shown, add_generation_prompt=True, **tools)
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"the chat template of {self.tokenizer.name_or_path} refuses this conversation: {error}") from None

    def places(self, messages: list[dict], spans: list[range]) -> list[int]:
        """The rendered conversation as token ids, with -1 - v for every vector v of the span that a mark stands for."""
        places: list[int] = []
        for index, piece in enumerate(MARK.split(self.render(messages))):
            if index % 2:
                places += [-1 - vector for vector in spans[int(piece)]]
            else:
                places += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return places

    def check_text(self, text: str) -> str:
        """What a person says. UserError if it spells a control token of the LLM or a mark, which would be taken for one."""
        found = next((token for token in self.tokenizer.all_special_tokens if token in text), None) or MARK.search(text)
        if found:
            word = found if isinstance(found, str) else found[0]
            raise UserError(f"{text[:60]!r}: {word} has a meaning of its own for the LLM; take it out")
        return encodable(text)

    def defuse(self, text: str) -> str:
        """What a tool or the model says: control tokens and marks in it become plain text by a space after their first letter."""
        text = encodable(text)
        for token in self.control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return MARK.sub(r"< audio \1>", text)

    def call_form(self) -> tuple[str, str, str]:
        """How this LLM writes a call: before the function's name, between name and arguments, after the arguments."""
        if not self.writes_calls:
            return HERMES
        asked = self._try([_USER], add_generation_prompt=True)
        answered = self._try([_USER, _call(_probe_call())])
        start = next((i for i, (a, b) in enumerate(zip(asked, answered)) if a != b), min(len(asked), len(answered)))
        written = re.search(rf'(.*){_NAME}(.*?)\{{\s*"{_KEY}":\s*"{_VALUE}"\s*\}}(.*)', answered[start:], re.DOTALL)
        if not written:
            return HERMES
        end = self.tokenizer.decode([end_token(self.tokenizer, chat=True)])
        return written[1], written[2], written[3].partition(end)[0].rstrip()

    def _shown(self, message: dict) -> dict:
        """A message in the form that this template knows."""
        if call := message.get("call"):
            if self.writes_calls:
                return _call(call, message["content"])
            before, between, after = HERMES
            written = f"{before}{call['name']}{between}{json.dumps(call['arguments'], ensure_ascii=False)}{after}"
            return {"role": "assistant", "content": f"{message['content']}\n{written}".strip()}
        if message["role"] == "tool" and not (self.tool_role or (self.writes_calls and "tool_call_id" in message)):
            return {"role": "user", "content": message["content"]}
        return {key: message[key] for key in ("role", "content", "name", "tool_call_id") if key in message}

    def _try(self, messages: list[dict], **settings) -> str:
        try:
            return apply_template(self.tokenizer, messages, **settings)
        except (jinja2.TemplateError, TypeError):
            return ""


def _probe_call() -> dict:
    return {"name": _NAME, "arguments": {_KEY: _VALUE}, "id": "call00000"}


def _call(call: dict, said: str = "") -> dict:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"role": "assistant", "content": said, "tool_calls": [{"id": call["id"], "type": "function", "function": function}]}
