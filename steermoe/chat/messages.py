"""Messages as transformers' chats have them, {"role": "user", "content": …}, content being text or a list of typed parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from steermoe.errors import UserError

FORM = (
    'a message is {"role": "user", "content": "text"}, its content also a list of {"type": "text", "text": …} and '
    '{"type": "audio", "audio": FILE or samples}'
)


def split(messages: Sequence[dict]) -> tuple[str | None, list[tuple[str, list]]]:
    """-> the system message, and (role, parts) of the others: "user" and "assistant" in turn, the last by the user.

    Parts are text (str), audio files (Path) and samples (N,). UserError names the message that is something else.
    """
    system, turns = None, []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "system" and number == 1 and isinstance(message.get("content"), str):
            system = message["content"]
            continue
        wanted = "assistant" if turns and turns[-1][0] == "user" else "user"
        if role != wanted:
            raise UserError(f"{where}: its role is {role!r} and should be {wanted!r}, after one system message at most")
        turns.append((role, parts_of(message.get("content"), where)))
        if role == "assistant" and any(not isinstance(part, str) for part in turns[-1][1]):
            raise UserError(f"{where}: the assistant says text only")
    if not turns or turns[-1][0] != "user":
        raise UserError("the last message is not by the user: there is nothing to answer")
    return system, turns


def parts_of(content: Any, where: str) -> list:
    """Of one message's content. UserError for what is neither text nor audio."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)) or not content:
        raise UserError(f"{where}: no content; {FORM}")
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    audio = (part.get("audio", part.get("path"))) if kind == "audio" else None
    if audio is None:
        raise UserError(f"{where}: {str(part)[:60]} is not a part that is known; {FORM}")
    return Path(audio) if isinstance(audio, str) else audio
