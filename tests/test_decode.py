"""Greedy search against transformers' generate, beam search against all possibilities, the guard, and the resume."""

import itertools
import json
import math

import pytest
import torch

import tiny
from steermoe.config import DecodeConf
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.decoder import answer_limit, decode_batch, decode_dataset
from steermoe.decode.hypotheses import Journal, join_journals, open_journal, write_hypotheses
from steermoe.decode.repeats import loop_start
from steermoe.stamp import Stamp
from steermoe.decode.search import beam_search, greedy_search
from steermoe.errors import UserError

LENGTHS = [50, 80, 123, 200]


@pytest.fixture()
def data(tmp_path):
    return AudioTextDataset(tiny.make_dataset(tmp_path, LENGTHS))


def prompts(model, data, indices):
    batch = Collator(model.llm, "x ", answers=False)([data[i] for i in indices])
    return model.soft_prompt(batch, left_pad=True)


def test_greedy_equals_transformers_token_by_token(tiny_model, data):
    with torch.no_grad():
        vectors, layout = prompts(tiny_model, data, range(4))
    ours = greedy_search(tiny_model.llm, vectors, layout, [20] * 4, DecodeConf(max_repeats=0))
    theirs = tiny_model.llm.llm.generate(
        inputs_embeds=vectors, attention_mask=layout.mask_bq.long(), max_new_tokens=20, do_sample=False
    )
    end = tiny_model.llm.template("x").end_id
    for hypothesis, row in zip(ours, theirs.tolist()):
        assert hypothesis.tokens == list(itertools.takewhile(lambda token: token != end, row))


@pytest.mark.parametrize("beam", [1, 3])
def test_alone_or_in_a_batch_the_answer_is_the_same(tiny_model, data, beam):
    conf = DecodeConf(beam=beam, max_tokens=15, max_tokens_per_second=0)
    collator = Collator(tiny_model.llm, "x ", answers=False)
    together = decode_batch(tiny_model, collator([data[i] for i in range(4)]), [1.0] * 4, conf)
    for index, hypothesis in enumerate(together):
        (alone,) = decode_batch(tiny_model, collator([data[index]]), [1.0], conf)
        assert alone.tokens == hypothesis.tokens and alone.ended == hypothesis.ended
        assert alone.score == pytest.approx(hypothesis.score, abs=1e-3)


def small_vocabulary(model, kept, monkeypatch):
    """Makes every token impossible but `kept`, so that all answers can be written down."""
    logits = model.llm.logits

    def masked(hidden):
        values = logits(hidden)
        mask = torch.full_like(values, -math.inf)
        mask[..., kept] = 0.0
        return values + mask

    monkeypatch.setattr(model.llm, "logits", masked)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_answers(tiny_model, data, monkeypatch, penalty):
    end, limit = tiny_model.llm.template("x").end_id, 3
    small_vocabulary(tiny_model, [5, 6, end], monkeypatch)
    with torch.no_grad():
        vectors, layout = prompts(tiny_model, data, [1, 3])
        conf = DecodeConf(beam=16, length_penalty=penalty, max_repeats=0)
        found = beam_search(tiny_model.llm, vectors, layout, [limit] * 2, conf)
        for row, hypothesis in enumerate(found):
            best = max(
                (score / (len(tokens) + 1) ** penalty, tokens)
                for tokens, score in all_answers(tiny_model, data, [1, 3][row], [5, 6], end, limit)
            )
            assert list(best[1]) == hypothesis.tokens
            assert best[0] == pytest.approx(hypothesis.score / (len(hypothesis.tokens) + 1) ** penalty, abs=1e-4)


def all_answers(model, data, index, words, end, limit):
    vectors, layout = prompts(model, data, [index])
    for size in range(limit + 1):
        for tokens in itertools.product(words, repeat=size):
            targets = [*tokens, end] if size < limit else list(tokens)  # at the limit no end token is scored
            ids = torch.tensor([tokens], dtype=torch.long)
            both = torch.cat([vectors, model.llm.embed(ids)], 1)
            ones = torch.ones(1, both.shape[1], dtype=torch.bool)
            hidden = model.llm.hidden(both, ones, ones.long().cumsum(1) - 1)[0, vectors.shape[1] - 1 :]
            logprobs = model.llm.logits(hidden).float().log_softmax(-1)
            yield tokens, sum(logprobs[i, token].item() for i, token in enumerate(targets))


def test_beam_is_at_least_as_probable_as_greedy(tiny_model, data):
    with torch.no_grad():
        vectors, layout = prompts(tiny_model, data, range(4))
    conf = DecodeConf(length_penalty=0.0, max_repeats=0)
    greedy = greedy_search(tiny_model.llm, vectors, layout, [6] * 4, conf)
    conf.beam = 8
    for one, other in zip(beam_search(tiny_model.llm, vectors, layout, [6] * 4, conf), greedy):
        assert one.score >= other.score - 1e-4


@pytest.mark.parametrize(
    ("tokens", "cut"),
    [
        ([], None),
        ([7] * 11, None),
        ([7] * 12, 1),
        ([1, 2] + [7] * 12, 3),
        ([3, 4] * 5, None),
        ([3, 4] * 6, 2),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], 4),
        ([1, 2, 3] * 4, None),
        (list(range(40)), None),
        ([*range(20)] * 5, 20),
    ],
)
def test_loops(tokens, cut):
    assert loop_start(tokens, 4) == cut


def test_the_guard_can_be_turned_off():
    assert loop_start([7] * 1000, 0) is None


@pytest.mark.parametrize("beam", [1, 2])
def test_a_looping_model_is_stopped_and_it_is_counted(tiny_model, data, monkeypatch, tmp_path, beam):
    small_vocabulary(tiny_model, [70], monkeypatch)
    conf = DecodeConf(beam=beam, max_tokens=100, max_tokens_per_second=0)
    journal = Journal(tmp_path / "part")
    decode_dataset(tiny_model, data, "x ", conf, journal)
    assert list(journal.results.values()) == [[tiny_model.llm.decode([70]), "repeat"]] * 4
    write_hypotheses(tmp_path, data.entries, journal, {}, Stamp(tmp_path / ".done", {}))
    assert json.loads((tmp_path / "decode.json").read_text())["ended"] == {"end": 0, "length": 0, "repeat": 4}


def test_limits_follow_the_audio():
    conf = DecodeConf(max_tokens=100, max_tokens_per_second=10)
    assert [answer_limit(seconds, conf) for seconds in (0.1, 2.0, 30.0)] == [11, 30, 100]
    conf.max_tokens_per_second = 0
    assert answer_limit(0.1, conf) == 100


def test_killed_and_resumed_gives_the_same_hypotheses(tiny_model, data, tmp_path):
    conf = DecodeConf(max_tokens=12, batch_frames=250)
    decode_dataset(tiny_model, data, "x ", conf, whole := Journal(tmp_path / "whole"))
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len(lines) > 1
    (tmp_path / "killed").write_bytes(lines[0] + lines[1][:20])
    decode_dataset(tiny_model, data, "x ", conf, resumed := Journal(tmp_path / "killed"))
    assert resumed.results == whole.results and whole.results.keys() == {entry["utt"] for entry in data.entries}
    assert (tmp_path / "killed").read_bytes().splitlines()[0] == lines[0].rstrip()
    for name, journal in (("one", whole), ("other", resumed)):
        (tmp_path / name).mkdir()
        write_hypotheses(tmp_path / name, data.entries, journal, {}, Stamp(tmp_path / name / ".done", {}))
    assert (tmp_path / "one" / "text").read_bytes() == (tmp_path / "other" / "text").read_bytes()


def test_jobs_that_share_the_audio_give_the_same_hypotheses_as_one(tiny_model, tmp_path):
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [50, 80, 123, 200, 90, 60]))
    conf, stamp = DecodeConf(max_tokens=6, batch_frames=250), Stamp(tmp_path / ".done", {})
    decode_dataset(tiny_model, data, "x ", conf, whole := Journal(tmp_path / "whole"))
    decode_dataset(tiny_model, data, "x ", conf, first := open_journal(tmp_path, stamp, 1, 2), 1, 2)
    with pytest.raises(UserError, match="of 6 utterances are decoded; run stage 5 again"):
        join_journals(tmp_path, stamp, 2, len(data))
    decode_dataset(tiny_model, data, "x ", conf, second := open_journal(tmp_path, stamp, 2, 2), 2, 2)
    assert not first.results.keys() & second.results.keys() and abs(len(first.lines) - len(second.lines)) <= 1
    assert join_journals(tmp_path, stamp, 2, len(data)).results == whole.results


def test_a_hypothesis_with_a_unicode_line_separator_survives_a_resume(tmp_path):
    journal = Journal(tmp_path / "part")
    journal.run("x", [["a"], ["b"]], lambda batch: {batch[0]: ["one\u2028two\x85three", "end"]})
    assert Journal(tmp_path / "part").results == journal.results and len(journal.lines) == 2
