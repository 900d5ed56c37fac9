"""What the steering does in every frame of a data set, and what there is to hear in that frame.

Shape legend: T real encoder frames of an utterance, L encoder layers, N experts, M mel bands or other features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from steermoe.config import Config
from steermoe.ctc import BLANK
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE

LETTERS = {"vowel": "aeiouy", "plosive": "bcdgkpqt", "fricative": "fhjsvxz", "nasal": "mn", "approximant": "lrw"}
CLASSES = (*LETTERS, "other", "pause")
NEAR = 3  # frames around a letter's own that count as the letter
LOUDEST, QUIETEST = 0.9, 0.1  # quantiles of a frame's level: their distance tells how noisy a recording is


@dataclass
class Utterance:
    """utt, spk: names. chosen_lt (L, T) int64: the expert with the largest gate. entropy_lt: of the gates, nat. share_ln: the gates'
    sums over the frames. ratio_lt: norm of what is added over the norm of the hidden state. letter_t int64: place in CLASSES, -1
    where it is not known. contrast: loud over quiet frames, in the features' own unit.
    """

    utt: str
    spk: str
    chosen_lt: np.ndarray
    entropy_lt: np.ndarray
    share_ln: np.ndarray
    ratio_lt: np.ndarray
    letter_t: np.ndarray
    contrast: float


def measure(model: SteerMoE, config: Config, data: AudioTextDataset, indices: list[int]) -> Iterator[Utterance]:
    """One utterance after another. UserError if the adapter does not steer."""
    if not hasattr(model.steering, "gates"):
        raise UserError(f"steering: {config.steering}: there are no experts in this adapter, so nothing to look into")
    collate = Collator(model.llm, config.data_conf.prompt)
    for index in indices:
        batch, entry = collate([data[index]]), data.entries[index]
        layers: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            hidden, lens = model.encoder(batch.feats_bfm, batch.feat_lens_b, _watched(model.steering, layers))
            frames = int(lens[0])
            gates_ltn = torch.stack([gates_btn[0, :frames] for gates_btn, _ in layers])
            letter_t = _letters(model, hidden, lens, entry["text"], frames)
        yield Utterance(
            utt=entry["utt"],
            spk=entry["spk"],
            chosen_lt=gates_ltn.argmax(-1).numpy(),
            entropy_lt=torch.special.entr(gates_ltn).sum(-1).numpy(),
            share_ln=gates_ltn.sum(1).numpy(),
            ratio_lt=torch.stack([ratio_bt[0, :frames] for _, ratio_bt in layers]).numpy(),
            letter_t=letter_t,
            contrast=contrast(batch.feats_bfm[0].float().numpy()),
        )


def _watched(steering, layers: list[tuple[Tensor, Tensor]]) -> Callable[[int, Tensor], Tensor]:
    """The steering, which leaves (gates (B, T, N), ratio of norms (B, T)) of every layer in `layers`."""

    def steer(layer: int, hidden_btd: Tensor) -> Tensor:
        steered_btd = steering(layer, hidden_btd)
        before_bt = hidden_btd.float().norm(dim=-1)
        ratio_bt = (steered_btd.float() - hidden_btd.float()).norm(dim=-1) / before_bt.clamp(min=1e-9)
        layers.append((steering.gates(layer, hidden_btd).float(), ratio_bt))
        return steered_btd

    return steer


def contrast(feats_fm: np.ndarray) -> float:
    """How far loud frames are above quiet ones, in the features' own unit (a logarithm): small in noise."""
    level_f = feats_fm.mean(1)
    return float(np.quantile(level_f, LOUDEST) - np.quantile(level_f, QUIETEST))


def _letters(model: SteerMoE, hidden_btd: Tensor, lens_b: Tensor, text: str, frames: int) -> np.ndarray:
    """(T,) places in CLASSES by CTC's forced alignment of the text; -1 without CTC over bytes, or if the text does not fit."""
    unknown = np.full(frames, -1)
    projector = model.projector
    if not hasattr(projector, "hear") or not projector.units.spells:
        return unknown
    scores_buc, lens_b = projector.hear(hidden_btd, lens_b, model.encoder.final_norm)
    spelled = projector.units.units(model.llm.encode(text))
    placed = aligned(scores_buc[0, : int(lens_b[0])].float().log_softmax(-1), spelled)
    if placed is None:
        return unknown
    repeat = -(-frames // len(placed))  # frames of the encoder in one of the projector
    letters = [chr(projector.units.bytes[unit]).lower() for unit in spelled]
    return np.repeat(letter_classes(placed, letters), repeat)[:frames]


def aligned(logprobs_uc: Tensor, spelled: list[int]) -> np.ndarray | None:
    """(U,) int64: which of the units is heard in each frame of the likeliest alignment, -1 for none; None if there are too few frames."""
    from torchaudio.functional import forced_align

    repeated = sum(one == other for one, other in zip(spelled, spelled[1:]))
    if not spelled or len(logprobs_uc) < len(spelled) + repeated:
        return None
    targets_1y = torch.tensor([spelled]) + 1
    path_u = forced_align(logprobs_uc[None], targets_1y, blank=BLANK)[0][0].numpy()
    begins_u = (path_u != BLANK) & (path_u != np.concatenate([[BLANK], path_u[:-1]]))
    return np.where(path_u != BLANK, begins_u.cumsum() - 1, -1)


def letter_classes(placed_u: np.ndarray, letters: list[str]) -> np.ndarray:
    """(U,) places in CLASSES: a frame belongs to the nearest letter that is at most NEAR frames away, or to a pause."""
    known = {letter: CLASSES.index(name) for name, group in LETTERS.items() for letter in group} | {" ": CLASSES.index("pause")}
    found_u = np.full(len(placed_u), CLASSES.index("pause"))
    at = np.flatnonzero(placed_u >= 0)
    if not len(at):
        return found_u
    frames = np.arange(len(placed_u))
    after = np.searchsorted(at, frames).clip(0, len(at) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(abs(at[before] - frames) <= abs(at[after] - frames), before, after)
    close = abs(at[nearest] - frames) <= NEAR
    classes = np.array([known.get(letters[place], CLASSES.index("other")) for place in placed_u[at]])
    found_u[close] = classes[nearest[close]]
    return found_u
