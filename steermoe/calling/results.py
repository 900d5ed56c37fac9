"""What a tool's process and the conversation's share: schemas of functions, and results as text."""

from __future__ import annotations

import inspect
import json
from typing import Any, Callable, Sequence

from steermoe.calling.parse import encodable
from steermoe.errors import UserError

MAX_RESULT = 8000  # characters; a longer result would push the conversation out of the LLM's context


def schemas_of(functions: Sequence[Callable]) -> list[dict]:
    """JSON schemas by transformers, from type hints and docstrings. UserError names function, line and what is missing."""
    from transformers.utils import get_json_schema

    schemas = []
    for function in functions:
        try:
            schemas.append(get_json_schema(function))
        except Exception as error:  # of transformers' own kinds, and NameError for a type hint that does not exist
            code = getattr(function, "__code__", None)
            where = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
            raise UserError(
                f"{where}{getattr(function, '__name__', function)}: {error}; a tool has type hints, and a docstring with a line "
                "`name: what it is` under `Args:` for every argument"
            ) from None
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}:
            raise UserError(f"{function.__name__}: a tool's arguments have names of their own; not *args, **kwargs or before a /")
    return schemas


def as_text(value: Any) -> str:
    """A text as it is, anything else as JSON; cut where it is too long for a conversation."""
    text = encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]} … (cut: {len(text)} characters)"
