#!/usr/bin/env python3
"""Scores the answers: tool chosen, arguments right, final answer containing the result; a table in OUT/RESULTS.md.

usage: local/score.py --queries queries/tools_en.jsonl --out exp/tools_en
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from queries import read_queries  # noqa: E402

from steermoe.bin.cli import Parser, run  # noqa: E402
from steermoe.environment import git_hash, processor  # noqa: E402
from steermoe.errors import UserError  # noqa: E402
from steermoe.files import atomic_write, read_jsonl  # noqa: E402
from steermoe.score.stats import bootstrap_interval, percent  # noqa: E402

ORDER = ("text", "alone", "transcript", "voice")


def main(argv=None) -> None:
    parser = Parser(prog="local/score.py", description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=Path, required=True, help="list of conversations")
    parser.add_argument("--out", type=Path, required=True, help="folder with answers.jsonl")
    parser.add_argument("--made-by", default="./run.sh", help="the command, for the report")
    args = parser.parse_args(argv)
    queries = {query["id"]: query for query in read_queries(args.queries)}
    answers = list(read_jsonl(args.out / "answers.jsonl"))
    if strange := [answer["id"] for answer in answers if answer["id"] not in queries]:
        raise UserError(f"{args.out}/answers.jsonl: {strange[0]} is not in {args.queries}; remove the file and ask again")
    report = "\n".join(lines(args, queries, answers)) + "\n"
    with atomic_write(args.out / "RESULTS.md") as stream:
        stream.write(report)
    print(report)


def lines(args, queries: dict[str, dict], answers: list[dict]) -> list[str]:
    head = [f"# {args.out.name}", "", f"- made by: `{args.made_by}`", f"- git {git_hash()}, {processor()}"]
    head += ["- rates in % of turns, with 95 % intervals: bootstrap by conversation", ""]
    with_tools = any(turn["tool"] for query in queries.values() for turn in query["turns"])
    measures = ["tool chosen", "arguments right", "answer right", "all three"] if with_tools else ["answer right"]
    head += [f"|asked as|kind|turns|{'|'.join(measures)}|", "|---|---|---|" + "---|" * len(measures)]
    for condition in [name for name in ORDER if any(a["condition"] == name for a in answers)]:
        mine = [answer for answer in answers if answer["condition"] == condition]
        kinds = list(dict.fromkeys(answer["kind"] for answer in mine))
        for kind in ["all", *kinds] if len(kinds) > 1 else ["all"]:
            some = [answer for answer in mine if kind in ("all", answer["kind"])]
            judged = [judge_all(queries[answer["id"]], answer) for answer in some]
            if judged := [turns for turns in judged if turns]:
                rates = [rate([[turn[name] for turn in turns] for turns in judged]) for name in measures]
                head.append(f"|{condition}|{kind}|{sum(map(len, judged))}|{'|'.join(rates)}|")
    return head + same_answers(answers)


def judge_all(query: dict, answer: dict) -> list[dict[str, bool]]:
    """The turns of a conversation that can be right or wrong."""
    turns = zip(query["turns"], answer["turns"])
    return [judge(wanted, given) for wanted, given in turns if wanted["tool"] or wanted["answer"]]


def judge(wanted: dict, given: dict) -> dict[str, bool]:
    """One turn: what was to be done, what was done. A turn without a tool is right if none was run."""
    ran = [call for call in given["calls"] if call["name"] and call["error"] is None]
    mine = [call for call in ran if call["name"] == wanted["tool"]]
    chosen = bool(mine) if wanted["tool"] else not ran
    right = any(fits(call["arguments"], wanted["arguments"]) for call in mine) if wanted["tool"] else not ran
    answer = not wanted["answer"] or any(contains(given["answer"], word) for word in wanted["answer"])
    return {"tool chosen": chosen, "arguments right": right, "answer right": answer, "all three": chosen and right and answer}


def fits(arguments: dict, wanted: dict[str, list]) -> bool:
    return all(plain(arguments.get(name)) in [plain(value) for value in values] for name, values in wanted.items())


def plain(value):
    return value.strip().casefold() if isinstance(value, str) else value


def contains(text: str, word: str) -> bool:
    """As a word of its own where it is one of Latin letters or digits; "5" is not in "15"."""
    if word.isascii() and word.isalnum():
        return bool(re.search(rf"(?<![a-z0-9]){re.escape(word.casefold())}(?![a-z0-9])", text.casefold()))
    return word.casefold() in text.casefold()


def rate(conversations: list[list[bool]]) -> str:
    good, turns = [sum(c) for c in conversations], [len(c) for c in conversations]
    low, high = bootstrap_interval(good, turns)
    return f"{percent(sum(good), sum(turns)):.1f} [{low:.1f}, {high:.1f}]"


def same_answers(answers: list[dict]) -> list[str]:
    """With the adapter loaded and without: the LLM's answers to text have to be the same."""
    one, two = (
        {answer["id"]: [turn["answer"] for turn in answer["turns"]] for answer in answers if answer["condition"] == name}
        for name in ("text", "alone")
    )
    both = one.keys() & two.keys()
    if not both:
        return []
    differ = sorted(key for key in both if one[key] != two[key])
    where = f"; different: {', '.join(differ)}" if differ else ""
    same = f"{len(both) - len(differ)} of {len(both)} answers are identical{where}"
    return ["", f"Asked as text, with the adapter loaded and without: {same}."]


if __name__ == "__main__":
    run(main)
