"""Branches of an LLM's text against the LLM run on every text from its beginning."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import tiny
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.branches import Branches
from steermoe.errors import UserError
from steermoe.llms.causal import CausalLM


@pytest.fixture()
def prompts(tiny_model, tmp_path):
    """Two of different lengths: vectors, layout."""
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [50, 120]))
    with torch.no_grad():
        return tiny_model.soft_prompt(Collator(tiny_model.llm, "x ", answers=False)([data[0], data[1]]), left_pad=True)


@torch.no_grad()
def from_the_beginning(llm, prompts, row, tokens):
    """(V,) log probabilities of what comes after a prompt and tokens."""
    vectors, layout = prompts
    vectors = torch.cat([vectors[row, layout.mask_bq[row]], llm.embed(torch.tensor(tokens, dtype=torch.long))])[None]
    return llm.logits(llm.hidden(vectors)[:, -1])[0].float().log_softmax(-1)


@torch.no_grad()
def test_every_branch_is_as_if_it_were_alone(tiny_model, prompts):
    branches = Branches(tiny_model.llm, *prompts)
    texts, places = {(0, ()): branches.roots[0], (1, ()): branches.roots[1]}, {}
    for row in (0, 1):
        wanted = from_the_beginning(tiny_model.llm, prompts, row, [])
        torch.testing.assert_close(branches.logprobs_bv[row], wanted, atol=1e-4, rtol=1e-4)
    # Two texts grow out of one, one stays behind and goes on later, a prompt is taken up again.
    for grown in ([(0, (5,)), (0, (7,)), (1, (9,))], [(0, (5, 6)), (0, (5, 8)), (1, (4,))], [(0, (7, 5)), (0, (5, 8, 3)), (1, (9, 9))]):
        longer, logprobs = branches.step([texts[row, tokens[:-1]] for row, tokens in grown], [tokens[-1] for _, tokens in grown])
        for (row, tokens), branch, found in zip(grown, longer, logprobs):
            texts[row, tokens] = branch
            torch.testing.assert_close(found, from_the_beginning(tiny_model.llm, prompts, row, list(tokens)), atol=1e-4, rtol=1e-4)
    places = [place for branch in texts.values() for place in branch.tolist()]
    assert len(set(places)) == sum(map(len, branches.roots)) + 9  # what texts share is held once


@torch.no_grad()
def test_there_is_room_for_many(tiny_model, prompts):
    branches = Branches(tiny_model.llm, *prompts)
    branch, tokens = branches.roots[0], []
    for token in range(2, 130):
        (branch,), logprobs = branches.step([branch], [token])
        tokens.append(token)
    torch.testing.assert_close(logprobs[0], from_the_beginning(tiny_model.llm, prompts, 0, tokens), atol=1e-4, rtol=1e-4)


def windowed(llm, window):
    config = MistralConfig(
        vocab_size=llm.llm.config.vocab_size, hidden_size=llm.llm.config.hidden_size, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, sliding_window=window,
    )  # fmt: skip
    torch.manual_seed(5)
    return CausalLM(MistralForCausalLM(config), llm.tokenizer, model="tiny", dtype="float32", chat=False)


def test_a_window_longer_than_the_prompt_slides_on(tiny_model, prompts):
    width = prompts[1].mask_bq.shape[1]
    llm = windowed(tiny_model.llm, width + 4)
    with torch.no_grad():
        branches = Branches(llm, *prompts)
        branch, tokens = branches.roots[1], []
        for token in range(2, 20):
            (branch,), logprobs = branches.step([branch], [token])
            tokens.append(token)
            torch.testing.assert_close(logprobs[0], from_the_beginning(llm, prompts, 1, tokens), atol=1e-4, rtol=1e-4)


def test_an_llm_that_has_forgotten_its_prompt_is_refused(tiny_model, prompts):
    with pytest.raises(UserError, match=r"a layer of this LLM \(SlidingWindow\) forgets: use ctc_weight 0 or 1"):
        Branches(windowed(tiny_model.llm, 4), *prompts)
