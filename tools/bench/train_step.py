"""One training step (loss, gradients, AdamW) on a batch of four utterances of 10 to 14 s.

ours             this repository, Whisper's window `trim`, bfloat16 and float32
authors          30 s padding, text padded to 448, logits at every position, float32
straightforward  30 s padding, transformers' modules, text to the longest, logits at every position

The share of the peak is our floating-point operations a second over those of a large matrix product. Operations are counted from
the shapes of what a step runs: 2 m n k for a product of m x k and k x n, the same for convolutions; attention, causal or not, as
the products that it is made of (by a fused kernel: 2 forward, 5 backward, since that makes the scores again).
"""

from __future__ import annotations

import statistics
from typing import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from pair import add_shape_options, make_batch, make_pair
from references import Authors, Straightforward, pad_feats
from steermoe.config import OptimConf
from steermoe.train.objectives import NextToken
from steermoe.train.optim import make_optimizer
from turns import print_report, rows, spread, take_turns

ROUNDS = 7
SECONDS = [10.4, 11.6, 12.8, 14.0]
OURS, PEAK = "ours bfloat16", "matrix product"
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}
FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")


def add_options(parser) -> None:
    add_shape_options(parser)


def run(args) -> None:
    ours = make_pair(args.shapes, args.device)
    batch = make_batch(ours, SECONDS, answers=True)
    feats = pad_feats(ours, batch)
    in_float32 = make_pair(args.shapes, args.device, "float32")
    authors, plain = Authors(in_float32), Straightforward(in_float32)
    halved = Straightforward(ours)
    step = our_step(ours, batch)
    variants = {
        OURS: step,
        "ours float32": our_step(in_float32, batch),
        "authors": reference_step(authors, feats, batch),
        "straightforward float32": reference_step(plain, feats, batch),
        "straightforward bfloat16": reference_step(halved, feats, batch),
        PEAK: matrix_product(PEAK_SIZE[args.device], args.device),
    }
    flops = count_flops(step)
    times = take_turns(variants, args.rounds, args.device)
    product = 2 * PEAK_SIZE[args.device] ** 3
    peaks = [product / seconds for seconds in getattr(times.pop(PEAK), args.clock)]
    shares = [100 * flops / seconds / peak for seconds, peak in zip(getattr(times[OURS], args.clock), peaks)]
    notes = [
        f"Batch of {len(SECONDS)} utterances, {sum(SECONDS):.1f} s of audio.",
        f"A step of ours is {flops / 1e12:.3f} TFLOP; the bfloat16 peak is {statistics.median(peaks) / 1e12:.3f} TFLOP "
        f"a second{' of processor time' if args.clock == 'cpu' else ''}, of which ours reaches {spread(shares, '{:.0f}')} %.",
    ]
    print_report(f"Training step, {args.shapes}, {args.device}", rows(times, OURS, args.clock), notes, args)


def our_step(model, batch) -> Callable[[], object]:
    optimizer, objective = make_optimizer(model.parameter_groups(), OptimConf()), NextToken()

    def step() -> None:
        optimizer.zero_grad()
        loss = objective(model, batch, 1)
        (loss.total / loss.units).backward()
        optimizer.step()

    return step


def reference_step(model, feats, batch) -> Callable[[], object]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        model.loss(feats, batch).backward()
        optimizer.step()

    return step


def matrix_product(size: int, device: str) -> Callable[[], object]:
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: left @ right


def count_flops(step: Callable[[], object]) -> int:
    # torch's own counter knows neither the CPU's kernel nor heads that share keys and values.
    kernels = {getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): attention_flops for name in FUSED}
    kernels |= {getattr(torch.ops.aten, f"_scaled_dot_product_{name}_backward"): attention_backward_flops for name in FUSED}
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    with counter:
        step()
    return counter.get_total_flops()


def attention_flops(query, key, value, *_, **__) -> int:
    """Of shapes (B, K, S, E), (B, G, T, E), (B, G, T, E')."""
    batch, heads, places, width = query
    return 2 * batch * heads * places * key[2] * (width + value[3])


def attention_backward_flops(_, query, key, value, *__, **___) -> int:
    batch, heads, places, width = query
    return 2 * batch * heads * places * key[2] * (3 * width + 2 * value[3])
