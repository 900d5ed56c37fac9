"""A trained model over a batch and over a data set."""

from __future__ import annotations

import math

import torch

from steermoe.config import DecodeConf
from steermoe.ctc import confidence
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.sampler import sorted_batches
from steermoe.decode.ctc_prefix import hear
from steermoe.decode.hypotheses import Journal
from steermoe.decode.joint import joint_search
from steermoe.decode.search import Hypothesis, beam_search, greedy_search
from steermoe.errors import UserError
from steermoe.merge import Merged, merge_layout
from steermoe.model import SteerMoE


def answer_limit(seconds: float, conf: DecodeConf) -> int:
    """The longest answer allowed for this much audio, in tokens."""
    if conf.max_tokens_per_second <= 0:
        return conf.max_tokens
    return min(conf.max_tokens, math.ceil(seconds * conf.max_tokens_per_second) + 10)


@torch.inference_mode()
def decode_batch(model: SteerMoE, batch, seconds: list[float], conf: DecodeConf, engine=None) -> list[Hypothesis]:
    """batch: collated without answers. seconds: each utterance's audio. engine: a search by the LLM alone in place of ours, with the same
    arguments. UserError if CTC is asked for and the projector has none.
    """
    limits = [answer_limit(s, conf) for s in seconds]
    if not conf.ctc_weight:
        search = engine or (greedy_search if conf.beam == 1 else beam_search)
        return search(model.llm, *model.soft_prompt(batch, left_pad=True), limits, conf)
    if not hasattr(model.projector, "hear"):
        raise UserError("decode_conf.ctc_weight: this adapter has no CTC; it needs `projector: token`, and ctc_weight 0 decodes without")
    scores_buc, lens_b = model.projector.hear(*model.hear(batch), model.encoder.final_norm)
    if conf.ctc_weight == 1:
        found = [Hypothesis(tokens, 0.0, "end") for tokens in model.projector.reading(scores_buc, lens_b)]
    else:
        if conf.context:
            prompt = plain_text(model.llm, conf.context, len(limits))
        else:
            prompt = model.soft_prompt(batch, left_pad=True, audio=model.projector.read(scores_buc, lens_b))
        units = model.projector.units
        heard = hear(units.folded(scores_buc, conf.unheard), lens_b, temperature=conf.ctc_temperature)
        found = joint_search(model.llm, *prompt, heard, units, limits, conf)
    sure_b = confidence(scores_buc, lens_b) >= conf.min_confidence
    return [hypothesis if sure else Hypothesis([], 0.0, "end") for hypothesis, sure in zip(found, sure_b.tolist())]


@torch.inference_mode()
def listen(model: SteerMoE, batch, seconds: list[float], conf: DecodeConf) -> tuple[torch.Tensor, torch.Tensor]:
    """P_audio for a prompt, as `model.listen` -> (B, U, H), audio_lens_b (B,). Where the LLM helps CTC to read (`context`), what it hears
    are the tokens of that reading: half as many of them are wrong as in CTC's own.
    """
    if not (0 < conf.ctc_weight < 1 and conf.context and hasattr(model.projector, "hear")):
        return model.listen(batch)
    device = batch.feats_bfm.device
    found = [torch.tensor(one.tokens, dtype=torch.long, device=device) for one in decode_batch(model, batch, seconds, conf)]
    ids_bu = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
    return model.llm.embed(ids_bu).float(), torch.tensor([len(ids) for ids in found], device=device)


def plain_text(llm, text: str, rows: int) -> tuple[torch.Tensor, Merged]:
    """The same text in every row, without a chat template -> vectors (rows, Q, H), their layout."""
    ids_bs = torch.tensor(llm.encode(text), device=llm.llm.device).expand(rows, -1)
    length_b, none_b = torch.full((rows,), ids_bs.shape[1], device=ids_bs.device), ids_bs.new_zeros(rows)
    layout = merge_layout(ids_bs, length_b, none_b, none_b, length_b)
    return llm.embed(ids_bs), layout


def decode_dataset(
    model: SteerMoE, data: AudioTextDataset, prompt: str, conf: DecodeConf, journal: Journal, job: int = 1, nj: int = 1, engine=None
) -> None:
    """Fills the journal with every utterance's answer; whole batches found in it are not decoded again.

    job (from 1) of nj: every nj-th batch only. All have the same budget of frames, so jobs get the same share of the audio.
    """
    collator = Collator(model.llm, prompt, answers=False)
    device = next(model.projector.parameters()).device

    def decode(indices: list[int]) -> dict[str, list[str]]:
        entries = [data.entries[index] for index in indices]
        batch = collator([data[index] for index in indices]).to(device)
        hypotheses = decode_batch(model, batch, [entry["duration"] for entry in entries], conf, engine)
        return {e["utt"]: [model.llm.decode(h.tokens).strip(), h.ended] for e, h in zip(entries, hypotheses)}

    costs = [max(length, model.encoder.min_frames) for length in data.lengths()]
    journal.run("decode", sorted_batches(costs, conf.batch_frames, conf.max_batch)[job - 1 :: nj], decode)
