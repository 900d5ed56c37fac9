"""Does a call's argument object fit its JSON schema? The part of JSON Schema that transformers makes of Python type hints."""

from __future__ import annotations

import json
from typing import Any

TYPES: dict[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list, "null": type(None),
}  # fmt: skip


def violation(value: Any, schema: dict, name: str = "arguments") -> str | None:
    """What is wrong with `value`, for the LLM to read; None if it fits. Objects take no argument that their schema does not list.

    Stricter than JSON Schema in one thing: 3.0 is no integer, because the Python function would get a float.
    """
    if value is None and (schema.get("nullable") or schema.get("type") == "null"):
        return None
    if options := schema.get("anyOf"):
        wrong = [violation(value, option, name) for option in options]
        return None if None in wrong else wrong[0]
    kinds = schema.get("type", list(TYPES))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not any(_is(value, kind) for kind in kinds):
        return f"{name} must be of type {' or '.join(kinds)}, not {json.dumps(value, ensure_ascii=False)}"
    if "enum" in schema and value not in schema["enum"]:
        known, found = (json.dumps(item, ensure_ascii=False) for item in (schema["enum"], value))
        return f"{name} must be one of {known}, not {found}"
    if isinstance(value, dict):
        return _object(value, schema, name)
    if isinstance(value, list):
        items = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        if len(items) != len(value):
            return f"{name} must have {len(items)} items, not {len(value)}"
        return next((w for i, item in enumerate(items) if (w := violation(value[i], item, f"{name}[{i}]"))), None)
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    return isinstance(value, TYPES.get(kind, object))


def _object(value: dict, schema: dict, name: str) -> str | None:
    known, others = schema.get("properties"), schema.get("additionalProperties", {} if "properties" not in schema else None)
    for key, item in value.items():
        if known and key in known:
            wrong = violation(item, known[key], key)
        elif isinstance(others, dict):
            wrong = violation(item, others, key)
        else:
            wrong = f"unknown argument {key!r}; the arguments are {', '.join(known or {}) or 'none'}"
        if wrong:
            return wrong
    if missing := [key for key in schema.get("required", []) if key not in value]:
        return f"missing argument {missing[0]!r}"
    return None


def strict(schema: dict) -> dict:
    """The same schema in plain JSON Schema: unknown arguments forbidden, OpenAPI's `nullable` written out."""
    plain = {key: value for key, value in schema.items() if key not in ("nullable", "description", "return")}
    for key in ("items", "additionalProperties"):
        if isinstance(plain.get(key), dict):
            plain[key] = strict(plain[key])
    for key in ("anyOf", "prefixItems"):
        if key in plain:
            plain[key] = [strict(option) for option in plain[key]]
    if "properties" in plain:
        plain["properties"] = {name: strict(value) for name, value in plain["properties"].items()}
        plain.setdefault("additionalProperties", False)
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") else plain
