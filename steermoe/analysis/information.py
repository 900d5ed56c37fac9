"""How much the chosen expert says of a label: mutual information, and a permutation test of whether it is more than chance.

Neighbouring frames are alike, so frames are not shuffled one by one. A label of a whole utterance (speaker) goes to another
utterance; a label that changes within (letter) is shifted around in its utterance by a random number of frames.
Shape legend: U utterances, T frames of an utterance, F frames of all.
Source: Cover and Thomas, "Elements of Information Theory", section 2.3; Phipson and Smyth 2010, "Permutation P-values Should
Never Be Zero".
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np


class Information(NamedTuple):
    """bits: mutual information; chance: its mean over permutations, what finitely many frames give anyway; entropy: of the label, in
    bits, the most there is to know; p: the share of permutations with at least as much, counting this one.
    """

    bits: float
    chance: float
    entropy: float
    p: float


def mutual_information(chosen_f: np.ndarray, labels_f: np.ndarray) -> float:
    """In bits, of two int arrays of counts' places; frames with a negative label are left out."""
    known_f = labels_f >= 0
    chosen_f, labels_f = chosen_f[known_f], labels_f[known_f]
    if not len(chosen_f):
        return 0.0
    width = int(labels_f.max()) + 1
    joint = np.bincount(chosen_f * width + labels_f, minlength=(int(chosen_f.max()) + 1) * width).reshape(-1, width) / len(chosen_f)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return max(float((joint[there] * np.log2(joint[there] / independent[there])).sum()), 0.0)


def information(
    chosen: Sequence[np.ndarray], labels: Sequence[np.ndarray | int], permutations: int = 200, seed: int = 0
) -> Information:
    """chosen: for every utterance its (T,) experts. labels: an int for a label of the whole utterance, or (T,) of its frames; -1: unknown."""
    draw = np.random.default_rng(seed)
    whole = all(np.ndim(label) == 0 for label in labels)
    chosen_f = np.concatenate(chosen)

    def spread(labels) -> np.ndarray:
        return np.concatenate([np.full(len(one), label) if whole else label for one, label in zip(chosen, labels)])

    def permuted() -> np.ndarray:
        if whole:
            return spread([labels[place] for place in draw.permutation(len(labels))])
        return spread([np.roll(label, draw.integers(len(label))) for label in labels])

    labels_f = spread(labels)
    bits = mutual_information(chosen_f, labels_f)
    others = [mutual_information(chosen_f, permuted()) for _ in range(permutations)]
    as_much = sum(other >= bits - 1e-12 for other in others)
    entropy = mutual_information(labels_f[labels_f >= 0], labels_f[labels_f >= 0])
    return Information(bits, float(np.mean(others)) if others else 0.0, entropy, (1 + as_much) / (1 + permutations))
