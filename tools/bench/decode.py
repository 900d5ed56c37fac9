"""Greedy decoding of a small corpus of read utterances, 2 to 30 s. Answers have 3.4 tokens a second and end there, whatever the
(random) LLM would say.

ours             sorted by length, batches under decode_conf's budget of frames; Whisper's windows `trim` and `full30`
authors          one utterance at a time, padded to 30 s, float32, transformers' generate
straightforward  8 at a time in the corpus's order, padded to 30 s, transformers' generate, which goes on to the longest answer

With --data, a data.jsonl of stage 2, there are real speech and answers that end: its first --utterances by a trained adapter,
searched as that is configured, greedily by the LLM alone, and by CTC alone where it has one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch

from pair import add_shape_options, answer_tokens, corpus_seconds, make_batch, make_pair
from references import Authors, Straightforward, pad_feats
from steermoe.checkpoint import load_model
from steermoe.config import DecodeConf
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.sampler import sorted_batches
from steermoe.decode.decoder import decode_batch
from steermoe.decode.search import greedy_search
from steermoe.pretrained import NAME, adapter_path, find_adapter
from turns import print_report, rows, take_turns

ROUNDS = 5
OURS, GREEDY = "ours bfloat16", "greedy by the LLM"


def add_options(parser) -> None:
    add_shape_options(parser)
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--batch-frames", type=int, default=DecodeConf().batch_frames, help="ours: decode_conf.batch_frames")
    parser.add_argument("--max-batch", type=int, default=DecodeConf().max_batch, help="ours: decode_conf.max_batch")
    parser.add_argument("--data", type=Path, help="a data.jsonl to decode with --adapter, instead of the invented corpus")
    parser.add_argument("--adapter", type=adapter_path, default=NAME, help="for --data: experiment folder, package or file")


def run(args) -> None:
    if args.data:
        return run_adapter(args)
    seconds = corpus_seconds(args.utterances)
    ours, in_float32 = make_pair(args.shapes, args.device), make_pair(args.shapes, args.device, "float32")
    authors, plain = Authors(in_float32), Straightforward(in_float32)
    halved = Straightforward(make_pair(args.shapes, args.device) if args.device == "cpu" else ours)  # ours is packed there
    variants = {
        OURS: our_decoding(ours, seconds, args),
        "ours float32": our_decoding(in_float32, seconds, args),
        "authors": reference_decoding(authors, ours, seconds, 1),
        "straightforward float32": reference_decoding(plain, ours, seconds, 8),
        "straightforward bfloat16": reference_decoding(halved, ours, seconds, 8),
    }
    if args.shapes != "c7b":  # Whisper's window; the Conformer always encodes the real length
        variants |= {"ours bfloat16 full30": our_decoding(make_pair(args.shapes, args.device, window="full30"), seconds, args)}
    speed = {"x real time": lambda median: f"{sum(seconds) / median:.1f}"}
    times = take_turns(variants, args.rounds, args.device)
    notes = [f"{len(seconds)} utterances, {sum(seconds):.0f} s of audio, {sum(map(answer_tokens, seconds))} tokens."]
    print_report(f"Decoding, {args.shapes}, {args.device}", rows(times, OURS, args.clock, speed), notes, args)


def run_adapter(args) -> None:
    adapter = find_adapter(args.adapter)
    model, config = load_model(adapter, args.device)
    data, conf = AudioTextDataset(args.data), config.decode_conf
    count = min(args.utterances, len(data))
    seconds = [data.entries[index]["duration"] for index in range(count)]
    confs = {GREEDY: replace(conf, beam=1, ctc_weight=0.0)}
    if hasattr(model.projector, "hear"):
        confs["CTC alone"] = replace(conf, ctc_weight=1.0)
    if conf not in confs.values():
        confs[f"as configured: beam {conf.beam}, ctc_weight {conf.ctc_weight:g}"] = conf
    collate = Collator(model.llm, config.data_conf.prompt, answers=False)
    batches = []
    for indices in sorted_batches(data.lengths()[:count], conf.batch_frames, conf.max_batch):
        batches.append((collate([data[index] for index in indices]).to(args.device), [seconds[index] for index in indices]))
    variants = {name: adapter_decoding(model, batches, each) for name, each in confs.items()}
    speed = {"x real time": lambda median: f"{sum(seconds) / median:.1f}"}
    times = take_turns(variants, args.rounds, args.device)
    notes = [f"{args.adapter.name}: {count} utterances, {sum(seconds):.0f} s of audio."]
    print_report(f"Decoding with a trained adapter, {args.device}", rows(times, GREEDY, args.clock, speed), notes, args)


def adapter_decoding(model, batches: list[tuple], conf: DecodeConf) -> Callable[[], list]:
    model.eval()
    return lambda: [hypothesis for batch, seconds in batches for hypothesis in decode_batch(model, batch, seconds, conf)]


def our_decoding(model, seconds: list[float], args) -> Callable[[], list]:
    model.eval()
    model.llm.pack()
    model.llm.stop_ids = set  # a random LLM ends nowhere
    conf = DecodeConf(max_repeats=0)
    costs = [max(round(100 * s), model.encoder.min_frames) for s in seconds]
    chosen = [[seconds[index] for index in batch] for batch in sorted_batches(costs, args.batch_frames, args.max_batch)]
    batches = [make_batch(model, batch, answers=False) for batch in chosen]

    @torch.inference_mode()
    def decode() -> list[list[int]]:
        found = []
        for batch, lengths in zip(batches, chosen):
            limits = [answer_tokens(s) for s in lengths]
            found += greedy_search(model.llm, *model.soft_prompt(batch, left_pad=True), limits, conf)
        return [hypothesis.tokens for hypothesis in found]

    return decode


def reference_decoding(model, ours, seconds: list[float], size: int) -> Callable[[], list]:
    model.eval()
    chosen = [seconds[start : start + size] for start in range(0, len(seconds), size)]
    batches = [make_batch(ours, batch, answers=False) for batch in chosen]
    feats = [pad_feats(ours, batch) for batch in batches]

    def decode() -> list[list[int]]:
        found = []
        for batch, padded, lengths in zip(batches, feats, chosen):
            limits = [answer_tokens(s) for s in lengths]
            answers = model.generate(padded, batch.text_ids_bs, max(limits)).tolist()
            found += [answer[:limit] for answer, limit in zip(answers, limits)]
        return found

    return decode
