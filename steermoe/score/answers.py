"""Answers to questions about audio, scored: exact match where annotators agree, its floors and ceiling, the paper's figure.

A question's reference is `text`; `answers` holds what every annotator said, where there were several. The headline is exact match
after the normaliser over the questions on which at least two annotators gave the reference (Clotho-AQA's "clean" split), or over
all questions where there was one annotator only. Intervals draw whole clips anew, because the questions on a clip belong together.

Shape legend: C clips, K sums kept for each clip, R bootstrap resamples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Sequence

import numpy as np

from steermoe.errors import UserError
from steermoe.files import read_jsonl
from steermoe.score.stats import RESAMPLES
from steermoe.score.trn import match_keys, read_trn, trn_id
from steermoe.text.normalizers import get_normalizer

YES_NO = ("yes", "no")
AGREE = 2  # annotators that give the reference


@dataclass
class Question:
    """One question with its answer. text, rows, hyp: as they were written; reference, answer: text and hyp normalised."""

    utt: str
    clip: str
    kind: str
    prompt: str
    text: str
    rows: list[str]  # the answers of all annotators
    hyp: str
    reference: str = ""
    answer: str = ""

    @property
    def agreed(self) -> bool:
        return len(self.rows) == 1 or self.rows.count(self.text) >= AGREE

    @property
    def right(self) -> bool:
        """An empty answer is never right, not even where the normaliser leaves nothing of the reference."""
        return bool(self.answer) and self.answer == self.reference


def read_questions(data: str | Path, hyp: str | Path, normalizer: str) -> list[Question]:
    """data: data.jsonl of stage 2. hyp: hyp.trn of the same utterances. UserError names what is in one of them only."""
    entries = {trn_id(entry["utt"], entry["spk"]): entry for entry in read_jsonl(data)}
    hyps, normalize = read_trn(hyp), get_normalizer(normalizer)
    match_keys(entries, hyps, str(data), str(hyp))
    questions = []
    for key, entry in entries.items():
        rows = entry.get("answers", entry["text"]).split("|")
        kind, prompt = entry.get("question_type", "question"), entry.get("prompt", "")
        question = Question(entry["utt"], entry["spk"], kind, prompt, entry["text"], rows, hyps[key])
        question.reference, question.answer = normalize(question.text).strip(), normalize(question.hyp).strip()
        questions.append(question)
    if not any(question.agreed for question in questions):
        raise UserError(f"{data}: no question on which {AGREE} annotators agree; nothing can be scored")
    return questions


def contains(hyp: str, answer: str) -> bool:
    """The paper's measure: one of the two is a part of the other, in lower case. Nothing is never right."""
    hyp, answer = hyp.lower().strip(), answer.lower().strip()
    return bool(hyp) and (hyp in answer or answer in hyp)


def equals(hyp: str, answer: str) -> bool:
    return hyp.lower().strip() == answer.lower().strip()


def summarize(questions: Sequence[Question], normalizer: str) -> dict:
    """summary.json: the keys of a word error rate's summary (its rate is that of wrong answers), and `answers` with the rest."""
    agreed = [question for question in questions if question.agreed]
    overall = rate(agreed)
    answers = {
        "questions": len(questions),
        "clips": len({question.clip for question in agreed}),
        "annotators": max(len(question.rows) for question in questions),
        "exact": exact_match(agreed),
        "floors": floors(agreed),
        "types": {kind: rate(part) | {"best constant": best_constant(part)} for kind, part in sorted(by_kind(agreed).items())},
    }
    if answers["annotators"] > 1:
        answers["annotations"] = annotations(questions)
    right, n = overall["right"], overall["n"]
    interval = f"[{overall['low']:.2f}, {overall['high']:.2f}]"
    return {
        "unit": "answer",
        "normalizer": normalizer,
        "line": f"Accuracy {overall['accuracy']:.2f} {interval} N={n} C={right} clips={answers['clips']}",
        "rate": 100 - overall["accuracy"],
        "low": 100 - overall["high"],
        "high": 100 - overall["low"],
        "n": n,
        "sentences": n,
        "sentence_errors": n - right,
        "c": right,
        "s": n - right,
        "d": 0,
        "i": 0,
        "answers": answers,
    }


def exact_match(agreed: Sequence[Question]) -> dict[str, dict]:
    """All questions, those whose answer is yes or no, the others, and the mean of these two rates."""
    parts = {"yes or no": [], "other answers": []}
    for question in agreed:
        parts["yes or no" if question.reference in YES_NO else "other answers"].append(question)
    parts = {name: part for name, part in parts.items() if part}
    found = {"all": rate(agreed)} | {name: rate(part) for name, part in parts.items()}
    if len(parts) == 2:
        sums_ck = clip_sums(agreed, lambda q: [q.right, 1, 0, 0] if q.reference in YES_NO else [0, 0, q.right, 1])
        low, high = interval(sums_ck, lambda sums: 50 * (sums[0] / sums[1] + sums[2] / sums[3]))
        mean = sum(found[name]["accuracy"] for name in parts) / 2
        found["macro average"] = {"n": len(agreed), "right": None, "accuracy": mean, "low": low, "high": high}
    return found


def floors(agreed: Sequence[Question]) -> list[dict]:
    """What needs no audio: constants, the most frequent answer (of each question type), chance among a type's
    answers.

    The frequencies are those of the very questions that are scored, which no system can know: floors on the high side.
    difference, low, high: of our accuracy over the floor, in points.
    """
    kinds = by_kind(agreed)
    usual = best_constant(agreed)
    usual_of = {kind: best_constant(part) for kind, part in kinds.items()}
    chance_of = {kind: 1 / len({question.reference for question in part}) for kind, part in kinds.items()}
    constants = dict.fromkeys([*YES_NO, usual])
    systems: dict[str, Callable[[Question], float]] = {
        f'always "{answer}"': (lambda q, answer=answer: q.reference == answer) for answer in constants
    }
    systems["each question type's most frequent answer"] = lambda q: q.reference == usual_of[q.kind]
    systems["chance among each question type's answers"] = lambda q: chance_of[q.kind]
    found = []
    for name, floor in systems.items():
        accuracy = 100 * sum(map(floor, agreed)) / len(agreed)
        low, high = interval(clip_sums(agreed, lambda q: [q.right - floor(q), 1]), lambda sums: 100 * sums[0] / sums[1])
        ours = 100 * sum(question.right for question in agreed) / len(agreed)
        found.append({"name": name, "accuracy": accuracy, "difference": ours - accuracy, "low": low, "high": high})
    return found


def annotations(questions: Sequence[Question]) -> dict:
    """The paper's substring figure over every annotator's answer to every question, and what constants and an oracle get there."""
    systems: dict[str, Callable[[Question], str]] = {
        "ours": lambda q: q.hyp,
        'always "yes"': lambda q: "yes",
        'always "yes no"': lambda q: "yes no",
        "majority oracle": lambda q: Counter(q.rows).most_common(1)[0][0],
    }
    found = {"n": sum(len(question.rows) for question in questions), "substring": {}, "exact": {}}
    for name, answer in systems.items():
        for measure, same in (("substring", contains), ("exact", equals)):
            found[measure][name] = rate(questions, lambda q: [sum(same(answer(q), row) for row in q.rows), len(q.rows)])
    return found


def by_kind(questions: Iterable[Question]) -> dict[str, list[Question]]:
    kinds: dict[str, list[Question]] = {}
    for question in questions:
        kinds.setdefault(question.kind, []).append(question)
    return kinds


def best_constant(questions: Sequence[Question]) -> str:
    """The most frequent reference; of equally frequent ones the first in the alphabet."""
    counts = Counter(question.reference for question in questions)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def rate(questions: Sequence[Question], count: Callable[[Question], Sequence[float]] = lambda q: [q.right, 1]) -> dict:
    """count: (right, of how many) for a question. -> {n, right, accuracy in percent, low, high: its 95 % interval}."""
    sums_ck = clip_sums(questions, count)
    right, n = (int(total) for total in sums_ck.sum(0))
    low, high = interval(sums_ck, lambda sums: 100 * sums[0] / sums[1])
    return {"n": n, "right": right, "accuracy": 100 * right / n, "low": low, "high": high}


def clip_sums(questions: Sequence[Question], count: Callable[[Question], Sequence[float]]) -> np.ndarray:
    """(C, K) float64: each clip's sums of `count`, which gives K numbers for a question."""
    clips: dict[str, np.ndarray] = {}
    for question in questions:
        numbers = np.asarray(count(question), dtype=np.float64)
        clips[question.clip] = clips.get(question.clip, 0) + numbers
    return np.stack(list(clips.values()))


def interval(sums_ck: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a statistic of the K totals, (K, R) -> (R,), when C clips are drawn with replacement."""
    clips = len(sums_ck)
    drawn_rc = np.random.default_rng(0).multinomial(clips, np.full(clips, 1 / clips), size=RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic((drawn_rc @ sums_ck).T)
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
