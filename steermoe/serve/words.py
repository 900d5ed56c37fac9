"""When each word of a transcript is said, where the adapter's CTC spells: by forced alignment of the text, within about 0.1 s.

Shape legend: N samples, T encoder frames, U scored frames, C units of CTC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

import numpy as np
import torch
from torch import Tensor

from steermoe.analysis.measure import aligned
from steermoe.data.segment import SAMPLE_RATE
from steermoe.transcript import Segment, split_units

if TYPE_CHECKING:
    from steermoe import SteerMoE


@torch.inference_mode()
def word_times(model: SteerMoE, samples_n: np.ndarray, text: str) -> list[Segment]:
    """samples_n (N,) float32 at 16 kHz, within the model's limit; text: what is said in it. -> its words, seconds from
    the first sample.

    A character of a script without spaces is a word. Words that CTC has no letters for are left out; the list is empty without
    CTC over bytes, or if the audio is too short for the text.
    """
    projector = model.network.projector
    if not text or not hasattr(projector, "hear") or not projector.units.spells:
        return []
    hidden_1td, lens_1, rate = encode(model, samples_n, model.network.steering)
    scores_1uc, frames_1 = projector.hear(hidden_1td, lens_1, model.network.encoder.final_norm)
    rate /= -(-int(lens_1[0]) // int(frames_1[0]))  # the projector makes one frame of some of the encoder's
    words = [word.strip() for word in split_units(text)]
    spelled, spans = [], []
    for unit in split_units(text):
        said = projector.units.said(unit.encode(), model.decode_conf.unheard)
        letters = [projector.units.unit_of[byte] for byte in said if byte in projector.units.unit_of]
        space = len(letters) and not unit[0].strip()  # which belongs to no word
        spans.append((len(spelled) + space, len(spelled) + len(letters)))
        spelled += letters
    placed_u = aligned(scores_1uc[0, : int(frames_1[0])].float().log_softmax(-1).cpu(), spelled)
    found = []
    for word, (first, stop) in zip(words, spans):
        at = np.flatnonzero((placed_u >= first) & (placed_u < stop)) if placed_u is not None else ()
        if len(at):
            end = min((at[-1] + 1) / rate, len(samples_n) / SAMPLE_RATE)
            found.append(Segment(float(at[0] / rate), float(end), word))
    return found


def encode(model: SteerMoE, samples_n: np.ndarray, steer: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor, float]:
    """-> hidden_1td (1, T, D), lens_1 (1,) of real frames, encoder frames a second."""
    network, frontend = model.network, model.frontend
    device = next(network.projector.parameters()).device
    feats_1fm = frontend(torch.from_numpy(samples_n))[None].to(device)
    frames = feats_1fm.shape[1]
    hidden_1td, lens_1 = network.encoder(feats_1fm, torch.tensor([frames], device=device), steer)
    heard = max(frames, network.encoder.min_frames) / frontend.frames_per_second  # padding to a whole window included
    return hidden_1td, lens_1, hidden_1td.shape[1] / heard
