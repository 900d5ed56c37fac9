"""The list of queries: one conversation a line, {"id", "kind", "turns": [{"say", "tool", "arguments", "answer"}, …]}.

tool: the function that has to be called, null for none; arguments: for each name the values that are right; answer: the final
answer has to contain one of these, [] where anything is right.
"""

from __future__ import annotations

from pathlib import Path

from steermoe.errors import UserError
from steermoe.files import read_jsonl


def read_queries(path: str | Path) -> list[dict]:
    """UserError names the line that lacks something."""
    queries = list(read_jsonl(path))
    if not queries:
        raise UserError(f"{path}: no query in it")
    for number, query in enumerate(queries, 1):
        if missing := {"id", "kind", "turns"} - query.keys():
            raise UserError(f"{path}:{number}: no {sorted(missing)[0]!r}; see local/queries.py")
        for turn in query["turns"]:
            if missing := {"say", "tool", "arguments", "answer"} - turn.keys():
                raise UserError(f"{path}:{number}: a turn has no {sorted(missing)[0]!r}; see local/queries.py")
        if "-" in query["id"]:
            raise UserError(f"{path}:{number}: id {query['id']!r}: no - in it, please: utterances are called VOICE-ID-TURN")
    return queries


def utterances(queries: list[dict]) -> dict[str, str]:
    """{"q01-1": what is said in the first turn of q01, …}"""
    return {f"{query['id']}-{number}": turn["say"] for query in queries for number, turn in enumerate(query["turns"], 1)}
