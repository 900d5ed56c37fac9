"""What a training shows of itself on a few dev utterances: prompts, labels and hypotheses, scales, gates.

Always the same utterances, evenly spread over the shorter half of the dev set (cheap, and quick to read): SAMPLES of them are
decoded, gates are measured on WATCHED.
Shape legend: B batch, T encoder frames, D encoder width, L encoder layers, N experts, X real frames of the batch.
"""

from __future__ import annotations

import dataclasses
import statistics

import torch
from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.data.collator import Batch, Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.decoder import decode_batch
from steermoe.llms.template import AUDIO
from steermoe.masks import length_mask
from steermoe.model import SteerMoE

WATCHED = 8
SAMPLES = 4
MAX_TOKENS = 40  # of a sample's hypothesis: an adapter that has learned nothing yet writes without end


class AdapterWatch:
    """() -> (figures, samples) of the model as it is; the model is to be in eval mode. No random numbers are drawn.

    figures: lists over the layers, {} without steering: `scales` (alpha), `gate_entropy` (mean over frames, nat), `expert_share`
    (mean gate of each expert). samples: {utt, prompt, label, hyp, ended}: hyp is the LLM's greedy answer, and ctc, with projector `token`,
    what CTC alone reads; where decoding is by CTC alone (ctc_weight 1) hyp is that, and the LLM is not run.
    """

    def __init__(self, model: SteerMoE, dev: AudioTextDataset, prompt: str, conf: DecodeConf):
        self.model, self.dev, self.collate = model, dev, Collator(model.llm, prompt, answers=False)
        weight = float(conf.ctc_weight == 1)
        self.conf = dataclasses.replace(conf, beam=1, ctc_weight=weight, max_tokens=min(conf.max_tokens, MAX_TOKENS))
        median = statistics.median(entry["duration"] for entry in dev.entries)
        short = [index for index, entry in enumerate(dev.entries) if entry["duration"] <= median]
        count = min(WATCHED, len(short))
        spread = [short[place * len(short) // count] for place in range(count)]
        groups = -(-count // SAMPLES)
        self.groups = [spread[first::groups] for first in range(groups)]  # each evenly spread; the first is decoded

    def __call__(self) -> tuple[dict[str, list], list[dict]]:
        figures = self.figures()  # first: what an encoder keeps for later then does not come from inference mode
        return figures, self.samples()

    @torch.no_grad()
    def figures(self) -> dict[str, list]:
        steering = self.model.steering
        figures = {"scales": rounded(steering.scales)} if hasattr(steering, "scales") else {}
        if hasattr(steering, "gates"):
            totals = [gate_totals(self.model, self._batch(group)) for group in self.groups]
            frames, entropy_l, share_ln = (sum(parts) for parts in zip(*totals))
            figures |= {"gate_entropy": rounded(entropy_l / frames), "expert_share": rounded(share_ln / frames)}
        return figures

    def samples(self) -> list[dict]:
        llm, entries, batch = self.model.llm, [self.dev.entries[index] for index in self.groups[0]], self._batch(self.groups[0])
        seconds = [entry["duration"] for entry in entries]
        samples = []
        for row, hypothesis in enumerate(decode_batch(self.model, batch, seconds, self.conf)):
            ids, audio_at = batch.text_ids_bs[row, : batch.text_lens_b[row]].tolist(), int(batch.audio_at_b[row])
            prompt = llm.tokenizer.decode(ids[:audio_at]) + AUDIO + llm.tokenizer.decode(ids[audio_at:])
            sample = {"utt": entries[row]["utt"], "prompt": prompt, "label": entries[row]["text"]}
            samples.append(sample | {"hyp": llm.decode(hypothesis.tokens).strip(), "ended": hypothesis.ended})
        if hasattr(self.model.projector, "hear") and not self.conf.ctc_weight:
            readings = decode_batch(self.model, batch, seconds, dataclasses.replace(self.conf, ctc_weight=1.0))
            for sample, reading in zip(samples, readings):
                sample["ctc"] = llm.decode(reading.tokens).strip()
        return samples

    def _batch(self, indices: list[int]) -> Batch:
        return self.collate([self.dev[index] for index in indices]).to(next(self.model.projector.parameters()).device)


def gate_totals(model: SteerMoE, batch: Batch) -> tuple[int, Tensor, Tensor]:
    """Real frames X, the sums over them of the gates' entropy (L,) in nat and of the gates (L, N); padding counts nowhere."""
    gates: list[Tensor] = []

    def steer(layer: int, hidden_btd: Tensor) -> Tensor:
        gates.append(model.steering.gates(layer, hidden_btd))
        return model.steering(layer, hidden_btd)

    _, lens_b = model.encoder(batch.feats_bfm, batch.feat_lens_b, steer)
    real_bt = length_mask(lens_b, gates[0].shape[1]) if len(gates[0]) == len(lens_b) else slice(None)  # padding, or end to end
    gates_lxn = torch.stack([gates_btn[real_bt].flatten(0, -2) for gates_btn in gates]).float()
    return int(lens_b.sum()), torch.special.entr(gates_lxn).sum((1, 2)), gates_lxn.sum(1)


def rounded(values: Tensor) -> list:
    """Nested lists, to 5 decimals: the log stays short."""
    return values.detach().double().cpu().mul(1e5).round().div(1e5).tolist()
