"""What the page draws of a recording: its spectrogram, and which experts steer each encoder layer when.

Shape legend: N samples, C columns of the picture, F feature frames, M mel bands, T encoder frames, L encoder layers, E experts.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steermoe.data.features import WINDOW_SAMPLES, WhisperLogMel
from steermoe.data.segment import SAMPLE_RATE, cut_at_pauses
from steermoe.errors import UserError
from steermoe.serve.words import encode

if TYPE_CHECKING:
    from steermoe import SteerMoE

MAX_COLUMNS = 1000
COLUMNS_PER_SECOND = 50  # of a short recording: as many as Whisper's encoder has frames
BANDS = 80
RANGE = 1.5  # of WhisperLogMel's values, 60 dB: what is softer than this below the loudest is drawn as silence
LOUDEST_SILENCE = 0.0  # 80 dB below a full-scale tone: a recording that has nothing louder is not made to look loud
FULL = 255


def hear(model: SteerMoE, samples_n: np.ndarray) -> dict[str, Any]:
    """samples_n (N,) float32 at 16 kHz -> what json can write; the arrays are base64 of uint8, row by row:

        {"seconds": 2.5, "columns": C, "bands": M, "spectrogram": (C, M), 0 silence to 255 the loudest,
         "layers": [{"alpha": 0.1, "experts": E, "gates": (C, E)}, …], "message": ""}

    A column's gates sum to 255; all are 0 in silence that cutting a long recording leaves out. Without steering `layers` is empty
    and `message` says why. Memory grows with the samples alone. UserError if there are none.
    """
    if not len(samples_n):
        raise UserError("the recording has no samples")
    seconds = len(samples_n) / SAMPLE_RATE
    columns = min(max(round(seconds * COLUMNS_PER_SECOND), 1), MAX_COLUMNS)
    steering = model.network.steering
    layers, message = [], ""
    if hasattr(steering, "gates"):
        gates_lce = _gates(model, samples_n, columns)
        layers = [
            {"alpha": round(alpha, 4), "experts": gates_lce.shape[2], "gates": _base64(gates_ce)}
            for alpha, gates_ce in zip(steering.scales.tolist(), gates_lce)
        ]
    else:
        message = f"This adapter was trained without steering (steering: {model.config.steering}), so it has no experts to show."
    picture = {"columns": columns, "bands": BANDS, "spectrogram": _base64(_spectrogram(samples_n, columns))}
    return {"seconds": round(seconds, 3), **picture, "layers": layers, "message": message}


def _spectrogram(samples_n: np.ndarray, columns: int) -> np.ndarray:
    """-> (C, M) uint8."""
    extract = WhisperLogMel(BANDS)
    blocks = [extract(torch.from_numpy(samples_n[at : at + WINDOW_SAMPLES])) for at in range(0, len(samples_n), WINDOW_SAMPLES)]
    feats_fm = torch.cat(blocks)
    loudest = max(float(feats_fm.max()), LOUDEST_SILENCE)
    bounds = torch.linspace(0, len(feats_fm), columns + 1, dtype=torch.float64)
    values_cm = _means(feats_fm[None].double(), bounds[:-1], bounds[1:])[0]
    return (FULL * ((values_cm - loudest) / RANGE + 1).clamp(0, 1)).round().to(torch.uint8).numpy()


@torch.inference_mode()
def _gates(model: SteerMoE, samples_n: np.ndarray, columns: int) -> np.ndarray:
    """-> (L, C, E) uint8. The recording is cut as for its transcript, and each piece is heard alone."""
    steering = model.network.steering
    width = len(samples_n) / SAMPLE_RATE / columns  # seconds in a column
    layers, experts = steering.experts.shape[:2]
    shares_lce = np.zeros((layers, columns, experts), dtype=np.uint8)
    for piece in cut_at_pauses(iter([samples_n]), model.limit):
        gates: list[Tensor] = []

        def steer(layer: int, hidden_1td: Tensor) -> Tensor:
            gates.append(steering.gates(layer, hidden_1td)[0].double().cpu())
            return steering(layer, hidden_1td)

        rate = encode(model, piece.samples_n, steer)[2]
        gates_lte = torch.stack(gates)
        first, stop = int(piece.start / width), min(int(np.ceil(piece.end / width)), columns)
        edges = (torch.arange(first, stop + 1, dtype=torch.float64) * width - piece.start).clamp(0, piece.end - piece.start)
        means_lce = _means(gates_lte, edges[:-1] * rate, edges[1:] * rate)
        # Rounding the running sum, not each share, keeps every column's sum exact.
        steps_lce = (FULL * means_lce.cumsum(-1)).round().numpy()
        shares_lce[:, first:stop] = np.diff(steps_lce, prepend=0)
    return shares_lce


def _means(values_xty: Tensor, begins_c: Tensor, ends_c: Tensor) -> Tensor:
    """(X, T, Y) float64 -> (X, C, Y): the mean of the frames that begin in [begin, end), or the one frame there if none does."""
    size = values_xty.shape[1]
    first_c = (begins_c + 1e-6).floor().long().clamp(0, size - 1)  # a column may begin where a frame does, but for rounding
    stop_c = torch.maximum(ends_c.round().long(), first_c + 1).clamp(max=size)
    sums_xty = torch.nn.functional.pad(values_xty.cumsum(1), (0, 0, 1, 0))
    return (sums_xty[:, stop_c] - sums_xty[:, first_c]) / (stop_c - first_c)[:, None]


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
