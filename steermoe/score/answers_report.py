"""The report on answers: Markdown tables that also read as plain text, and every question with its answer."""

from __future__ import annotations

from typing import Sequence

from steermoe.score.answers import Question


def tables(summary: dict) -> str:
    """summary: of steermoe.score.answers.summarize, or read back from summary.json."""
    answers = summary["answers"]
    several = answers["annotators"] > 1
    which = f"{summary['n']} questions"
    if several:
        which = f"the {summary['n']} of {answers['questions']} questions on which at least two annotators agree"
    parts = [
        f"Exact match after normaliser `{summary['normalizer']}` on {which}, {answers['clips']} clips. Accuracies in %, intervals: "
        "bootstrap by clip, 95 %." + " There is one clip: they have no width, and say nothing." * (answers["clips"] == 1),
        table(["answers", "questions", "right", "accuracy", "interval"], [cells(*pair) for pair in answers["exact"].items()]),
        "Without listening (frequencies of these very questions), and what we are above it, in points:",
        table(
            ["answering", "accuracy", "ours above", "interval"],
            [
                [f["name"], f"{f['accuracy']:.2f}", f"{f['difference']:+.2f}", f"[{f['low']:+.2f}, {f['high']:+.2f}]"]
                for f in answers["floors"]
            ],
        ),
        "By question type:",
        table(
            ["type", "questions", "right", "accuracy", "interval", "most frequent answer"],
            [[*cells(kind, found), found["best constant"]] for kind, found in answers["types"].items()],
        ),
    ]
    if several:
        found = answers["annotations"]
        parts += [
            f"The SteerMoE paper's figure, for comparison only: over all {found['n']} answers of annotators, right if our answer and "
            "the annotator's are one a part of the other (substring). Exact match over the same answers beside it:",
            table(
                ["system", "substring (paper)", "interval", "exact", "interval"],
                [[name, *accuracy(found["substring"][name]), *accuracy(found["exact"][name])] for name in found["substring"]],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def report(summary: dict, questions: Sequence[Question], title: str) -> str:
    """result.txt: the headline, the tables, a line for each question."""
    lines = [f"{'right' if q.right else 'WRONG'}{'' if q.agreed else ' (annotators disagree)'}  {q.utt}\n"
             f"  question: {q.prompt}\n  REF: {' | '.join(q.rows)}\n  HYP: {q.hyp}\n" for q in questions]  # fmt: skip
    return f"{title}\n\n{summary['line']}\n\n{tables(summary)}\nEvery question:\n\n" + "\n".join(lines)


def cells(name: str, found: dict) -> list[str]:
    return [name, str(found["n"]), "" if found["right"] is None else str(found["right"]), *accuracy(found)]


def accuracy(found: dict) -> list[str]:
    return [f"{found['accuracy']:.2f}", f"[{found['low']:.2f}, {found['high']:.2f}]"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Aligned Markdown: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [head, rule, *rows]
    padded = [[row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in lines]
    return "\n".join(f"|{'|'.join(row)}|" for row in padded)
