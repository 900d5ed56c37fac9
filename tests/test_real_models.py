"""The real frozen pair on real speech: run with --slow where the models have been fetched."""

import hashlib

import pytest
import torch

from steermoe.config import load_config
from steermoe.data.audio import load_audio
from steermoe.data.collator import Collator
from steermoe.data.dataset import Example
from steermoe.data.features import WhisperLogMel
from steermoe.model import SteerMoE
from steermoe.train.objectives import NextToken

pytestmark = pytest.mark.slow
FP32 = ["--encoder-conf.dtype", "float32", "--llm-conf.dtype", "float32"]


@pytest.fixture(scope="module")
def speech(shared_data):
    files = sorted((shared_data / "LibriSpeech" / "test-clean").glob("*/*/*.flac"))[:3]
    texts = ["a first sentence", "and a second one of another length", "three"]
    return [Example(file.stem, WhisperLogMel(80)(torch.from_numpy(load_audio(file))), t, None) for file, t in zip(files, texts)]


@pytest.fixture(scope="module", params=["trim", "crop"])
def model(request, real_models):
    return SteerMoE.from_config(load_config(None, [*FP32, "--encoder-conf.window", request.param])).eval()


def test_loss_alone_or_in_a_batch(model, speech):
    collator, loss = Collator(model.llm, "please transcribe: "), NextToken()
    with torch.no_grad():
        together = loss(model, collator(speech))
        alone = [loss(model, collator([example])) for example in speech]
    assert together.total.item() == pytest.approx(sum(one.total.item() for one in alone), rel=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_greedy_and_beam_alone_or_in_a_batch(model, speech, beam):
    from steermoe.config import DecodeConf
    from steermoe.decode.decoder import decode_batch

    conf, collator = DecodeConf(beam=beam, max_tokens=12), Collator(model.llm, "please transcribe: ", answers=False)
    together = decode_batch(model, collator(speech), [9.0] * 3, conf)
    assert [h.tokens for h in together] == [decode_batch(model, collator([e]), [9.0], conf)[0].tokens for e in speech]


def test_greedy_equals_transformers(model, speech):
    from steermoe.config import DecodeConf
    from steermoe.decode.search import greedy_search

    with torch.no_grad():
        vectors, layout = model.soft_prompt(Collator(model.llm, "please transcribe: ", answers=False)(speech), left_pad=True)
    ours = greedy_search(model.llm, vectors, layout, [16] * 3, DecodeConf(max_repeats=0))
    theirs = model.llm.llm.generate(
        inputs_embeds=vectors, attention_mask=layout.mask_bq.long(), max_new_tokens=16, do_sample=False, repetition_penalty=1.0
    )
    for hypothesis, row in zip(ours, theirs.tolist()):
        assert hypothesis.tokens == row[: len(hypothesis.tokens)]


def test_bases_are_bit_identical_after_bfloat16_training(real_models, speech):
    model = SteerMoE.from_config(load_config(None)).train()

    def state():
        digest = hashlib.sha256()
        for part in (model.encoder, model.llm):
            for tensor in part.state_dict().values():
                digest.update(tensor.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    before, batch = state(), Collator(model.llm, "please transcribe: ")(speech)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = NextToken()(model, batch)
        (loss.total / loss.units).backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert state() == before and losses[-1] < losses[0]


def test_the_llm_answers_text_as_if_no_adapter_were_there(model):
    """Given a prompt without audio vectors, the wrapped LLM's logits are those of transformers."""
    ids = torch.tensor([model.llm.encode("What is the capital of France?")])
    ones = torch.ones_like(ids)
    with torch.no_grad():
        ours = model.llm.logits(model.llm.hidden(model.llm.embed(ids), ones, ones.cumsum(1) - 1))
        theirs = model.llm.llm(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
