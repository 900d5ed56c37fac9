"""CTC prefix scores and joint search, in tokens and in letters, against enumeration of every alignment."""

import itertools
import math

import numpy as np
import pytest
import torch

from steermoe.config import DecodeConf
from steermoe.ctc import best_units
from steermoe.decode.ctc_prefix import NEVER, Heard, Prefixes, hear
from steermoe.decode.joint import Running, ends_of_lines, joint_search, leading, survivors
from steermoe.units import ByteUnits, TokenUnits


def heard(frames=5, tokens=2, batch=1, seed=0):
    torch.manual_seed(seed)
    logprobs = (2 * torch.randn(batch, frames, tokens + 1, dtype=torch.float64)).log_softmax(-1)
    return Heard(logprobs, torch.arange(10, 10 + tokens).expand(batch, -1))


def collapse(path):
    return tuple(key for key, _ in itertools.groupby(path) if key)


def texts(heard, row=0):
    """{candidate places: probability}, by brute force."""
    logprobs, found = heard.logprobs_bup[row], {}
    for path in itertools.product(range(logprobs.shape[1]), repeat=logprobs.shape[0]):
        probability = math.exp(sum(float(logprobs[frame, place]) for frame, place in enumerate(path)))
        found[collapse(path)] = found.get(collapse(path), 0.0) + probability
    return found


def number_of(prefixes, places, row=0):
    for place in places:
        (row,) = prefixes.longer([row], [place])
    return row


@pytest.mark.parametrize("prefix", [(), (1,), (1, 1), (1, 2), (2, 1, 2)])
def test_prefix_scores_are_sums_over_all_alignments(prefix):
    said = heard()
    prefixes = Prefixes(said)
    number = number_of(prefixes, prefix)
    everything = texts(said)
    assert math.exp(float(prefixes.ends([number]))) == pytest.approx(everything.get(prefix, 0.0), rel=1e-4, abs=1e-9)
    for place in (1, 2):
        wanted = sum(p for text, p in everything.items() if text[: len(prefix) + 1] == (*prefix, place))
        assert math.exp(prefixes.scores[number][place]) == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert prefixes.scores[number][0] == NEVER and prefixes.lens[number] == len(prefix)


def test_a_prefix_is_computed_once():
    prefixes = Prefixes(heard(batch=2))
    first, second, again = prefixes.longer([0, 1, 0], [1, 1, 1])
    assert [first, second] == [2, 3] and again == first and prefixes.longer([1, first], [1, 0]) == [second, first]
    assert len(prefixes.lens) == len(prefixes.scores) == 4


def spoken(text, frames, seed=5):
    """Heard of one utterance in which the places of `text` are said one after another, with a long pause that is not sure."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, frames, max(text) + 1, generator=draw, dtype=torch.float64)
    scores[..., 0] += 4.0
    half = len(text) // 2
    at = [*torch.linspace(3, 0.4 * frames, half), *torch.linspace(0.8 * frames, frames - 3, len(text) - half)]
    for place, frame in zip(text, at):
        scores[0, int(frame), place] += 9.0
    return Heard(scores.log_softmax(-1), torch.arange(max(text))[None])


def test_a_window_of_frames_is_enough():
    text = [1, 2, 3, 3, 4, 1, 1, 2, 5, 3, 4, 4, 2, 1]
    said = spoken(text, frames=400)
    prefixes, number, widths = Prefixes(said), 0, []
    for place in text:
        extension, held = prefixes.scores[number][place], prefixes.frames_held
        (number,) = prefixes.longer([number], [place])
        widths.append(prefixes.frames_held - held)
        # What begins with a row has at least the probability of all that goes on from it.
        assert extension >= float(torch.tensor(prefixes.scores[number]).logsumexp(0)) - 1e-6
    whole = -torch.nn.functional.ctc_loss(
        said.logprobs_bup.transpose(0, 1), torch.tensor([text]), torch.tensor([400]), torch.tensor([len(text)]), reduction="sum"
    )
    assert float(prefixes.ends([number])) == pytest.approx(float(whole), abs=1e-3)
    assert min(widths) < 180 < 400 * 0.4 + 100 < max(widths)  # narrow, and where there is a pause as wide as it takes


def test_letters_that_sound_for_long():
    text, frames = [1, 2, 2, 3, 1], 200
    scores = torch.full((1, frames, 4), -9.0, dtype=torch.float64)
    for number, place in enumerate(text):
        scores[0, 40 * number : 40 * number + 39, place] = 0.0
        scores[0, 40 * number + 39, 0] = 0.0
    prefixes = Prefixes(Heard(scores.log_softmax(-1), torch.arange(3)[None]))
    ends = prefixes.ends([number_of(prefixes, text)])
    assert float(ends) == pytest.approx(float(scores.log_softmax(-1).max(-1).values.sum()), abs=0.1)


def test_prefixes_of_different_windows_alone_as_together():
    said = spoken([1, 2, 3, 4, 5, 1, 2], frames=200)
    alone, together = Prefixes(said), Prefixes(said)
    texts_ = [(1, 2, 3), (2,), (1, 2, 3, 4)]
    apart = [number_of(alone, text) for text in texts_]
    third = number_of(together, texts_[0])
    numbers = [third, *together.longer([0, third], [2, 4])]
    for one, other in zip(apart, numbers):
        assert alone.scores[one].tolist() == pytest.approx(together.scores[other].tolist(), abs=1e-6)
    torch.testing.assert_close(alone.ends(apart), together.ends(numbers), atol=1e-6, rtol=0)


class Words:
    """An LLM that likes token 10 and never wants to end; a row's next token does not depend on those before it."""

    def __init__(self, likes=10, vocabulary=20):
        self.logprobs = torch.full((vocabulary,), -6.0)
        self.logprobs[likes] = -0.1

    def stop_ids(self):
        return {0}


@pytest.fixture()
def search(monkeypatch):
    """joint_search with the fake LLM in place of a decoding state; nothing is dropped for being behind."""

    class State:
        def __init__(self, llm, vectors, layout):
            self.llm = llm
            self.logprobs_bv = llm.logprobs.expand(vectors, -1)
            self.roots = [torch.arange(0)] * vectors

        def step(self, branches, tokens):
            longer = [torch.cat([branch, torch.tensor([token])]) for branch, token in zip(branches, tokens)]
            return longer, self.llm.logprobs.expand(len(tokens), -1)

    monkeypatch.setattr("steermoe.decode.joint.Branches", State)
    monkeypatch.setattr("steermoe.decode.joint.GAP", 1e9)
    monkeypatch.setattr("steermoe.decode.joint.HOPELESS", 1e9)

    def run(said, units=None, **conf):
        batch, llm = len(said.logprobs_bup), conf.pop("llm", Words())
        return joint_search(llm, batch, None, said, units or TokenUnits(llm), [conf.pop("limit", 50)] * batch, DecodeConf(**conf))

    return run


def test_the_best_text_by_the_weighted_sum_is_found(search):
    said, llm = heard(frames=5, tokens=3, seed=4), Words()
    for weight in (0.2, 0.5, 0.9):
        def total(item):
            text, probability = item
            written = sum(float(llm.logprobs[said.units_bp[0, place - 1]]) for place in text) + float(llm.logprobs[0])
            return (1 - weight) * written + weight * math.log(probability)

        best, probability = max(texts(said).items(), key=total)
        (found,) = search(said, beam=30, ctc_weight=weight)
        assert found.tokens == [int(said.units_bp[0, place - 1]) for place in best]
        assert found.score == pytest.approx(total((best, probability)), rel=1e-4)


class Letters:
    """Units a, b, c (1, 2, 3) spell the tokens; the LLM's vocabulary has single letters and longer pieces."""

    spells = True
    words = {10: "a", 11: "b", 12: "c", 13: "ab", 14: "abc", 15: "ca", 16: "bb"}

    def units(self, ids):
        return ["abc".index(letter) + 1 for token in ids for letter in self.words.get(token, "")]

    def heard(self, token, unheard=""):
        return self.units([token]) or None


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_a_token_is_heard_letter_by_letter(search, weight):
    """Against every way to write every text of up to four letters in tokens."""
    said, letters, llm = heard(frames=4, tokens=3, seed=11), Letters(), Words()
    said = Heard(said.logprobs_bup, torch.tensor([[1, 2, 3]]))
    llm.logprobs = torch.linspace(-9.0, -1.0, 20)
    probabilities = texts(said)

    def written(ids):
        return sum(float(llm.logprobs[token]) for token in ids) + float(llm.logprobs[0])

    totals = {}
    for count in range(5):
        for ids in itertools.product(letters.words, repeat=count):
            probability = probabilities.get(tuple(letters.units(ids)), 0.0)
            if probability:
                totals[ids] = (1 - weight) * written(ids) + weight * math.log(probability)
    best = max(totals, key=totals.get)
    (found,) = search(said, letters, llm=llm, beam=40, ctc_weight=weight)
    assert tuple(found.tokens) == best and found.score == pytest.approx(totals[best], rel=1e-5)


def running(total, prefix, place, length=2, tokens=()):
    return Running(total, 0.0, tokens, torch.arange(0), (prefix, place), length)


def test_who_survives(monkeypatch):
    monkeypatch.setattr("steermoe.decode.joint.GAP", 3.0)
    best, way, other, behind = running(-5.0, 1, 2), running(-6.0, 1, 2, tokens=(9,)), running(-7.0, 1, 3), running(-8.1, 3, 3)
    stack = [way, behind, other, best]
    assert survivors(stack, [], -100.0, beam=8, ahead=0.5) == [best, other]  # of one text the best way to write it
    assert survivors(stack, [], -100.0, beam=1, ahead=0.5) == [best]
    assert survivors(stack, [], -6.5, beam=8, ahead=0.5) == [best]  # a finished one is better
    further = running(-6.0, 7, 1, length=10)  # eight units further on for a nat
    assert survivors(stack, [[further]], -100.0, beam=8, ahead=0.4) == [best]  # as if it were at -2.8 here
    assert survivors(stack, [[further]], -100.0, beam=8, ahead=0.6) == []
    assert survivors(stack, [[further]], -100.0, beam=8, ahead=0.0) == [best, other]
    comma, stop = (running(-5.5, 4, 0, tokens=(9, mark)) for mark in (7, 8))
    assert survivors([comma, best, stop], [], -100.0, beam=8, ahead=0.5) == [best, comma, stop]  # marks differ in what may follow


def test_candidates_that_would_not_survive_are_not_made(monkeypatch):
    monkeypatch.setattr("steermoe.decode.joint.GAP", 3.0)
    rows, lens, ahead = np.array([0, 0, 0, 0, 1]), np.array([3, 3, 5, 6, 3]), np.array([-1.0, -4.5, -4.6, -1.5, -9.0])
    assert leading(rows, lens, ahead).tolist() == [0, 3, 4]  # 1 is behind one as long, 2 behind a longer one, 4 alone in its row
    assert leading(rows[:0], lens[:0], ahead[:0]).tolist() == []


def test_a_word_that_begins_badly_is_not_given_up_for_one_that_ends_badly(search, monkeypatch):
    """Two tokens for the same letters: the likelier beginning leads nowhere. With a beam of one a step of tokens would lose."""
    monkeypatch.undo()

    class Pieces(Letters):
        words = {10: "a", 13: "ab", 14: "bc", 12: "c", 11: "b"}

    class After:
        """Likes `a` first, then nothing; `ab` and what follows is written well."""

        def __init__(self, llm, vectors, layout):
            self.roots, self.logprobs_bv = [torch.arange(0)], self.say([()])

        def step(self, branches, tokens):
            longer = [torch.cat([branch, torch.tensor([token])]) for branch, token in zip(branches, tokens)]
            return longer, self.say([tuple(branch.tolist()) for branch in longer])

        @staticmethod
        def say(texts):
            likes = {(): {10: -0.1, 13: -2.5}, (13,): {12: -0.1}, (13, 12): {0: -0.1}, (10, 11, 12): {0: -0.1}}
            rows = torch.full((len(texts), 20), -9.0)
            for row, text in zip(rows, texts):
                for token, logprob in likes.get(text, {}).items():
                    row[token] = logprob
            return rows

    monkeypatch.setattr("steermoe.decode.joint.Branches", After)
    logprobs = torch.full((1, 3, 4), -12.0, dtype=torch.float64)
    for frame in range(3):
        logprobs[0, frame, frame + 1] = 0.0
    said = Heard(logprobs, torch.tensor([[1, 2, 3]]))
    (found,) = joint_search(Words(), 1, None, said, Pieces(), [50], DecodeConf(beam=1, ctc_weight=0.5))
    assert found.tokens == [13, 12] and found.ended == "end"


@pytest.mark.parametrize("likes, expected", [(13, 13), (15, 15)])
def test_of_many_beginnings_those_are_followed_that_the_llm_goes_on_with(search, monkeypatch, likes, expected):
    """CTC hears ab or cb, the first letter a little more likely an a; room for one beginning is left to the one that the LLM likes."""
    monkeypatch.setattr("steermoe.decode.joint.WIDTH", 1)
    letters = Letters()
    monkeypatch.setattr(letters, "words", {13: "ab", 15: "cb"})
    logprobs = torch.full((1, 2, 4), -30.0, dtype=torch.float64)
    logprobs[0, 0, [1, 3]] = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    logprobs[0, 1, 2] = 0.0
    said = Heard(logprobs, torch.tensor([[1, 2, 3]]))
    assert search(said, letters, llm=Words(likes=likes), beam=4, ctc_weight=0.5)[0].tokens == [expected]


class Written:
    """An LLM that writes ab as "A, b." (tokens 10 to 14) and finds other ways unlikely; 15 is another "a", 16 another mark."""

    def stop_ids(self):
        return {0}

    def after(self, tokens):
        logprobs = torch.full((20,), -8.0)
        logprobs[{(): 10, (10,): 11, (10, 11): 12, (10, 11, 12): 13}.get(tokens, 0)] = -0.1
        return logprobs


class Marks:
    spells = True
    words = {10: "a", 11: "", 12: "b", 13: "", 15: "a", 16: ""}

    def heard(self, token, unheard=""):
        letters = self.words.get(token)
        return None if letters is None or not (letters or unheard) else ["ab".index(letter) + 1 for letter in letters]


@pytest.mark.parametrize("unheard, expected", [(",.", [10, 11, 12, 13]), ("", [10, 12])])
def test_marks_that_are_not_heard_are_the_llms(monkeypatch, unheard, expected):
    """CTC hears ab and nothing else."""

    class State:
        def __init__(self, llm, vectors, layout):
            self.roots, self.logprobs_bv = [torch.arange(0)], llm.after(())[None]

        def step(self, branches, tokens):
            longer = [torch.cat([branch, torch.tensor([token])]) for branch, token in zip(branches, tokens)]
            return longer, torch.stack([Written().after(tuple(branch.tolist())) for branch in longer])

    monkeypatch.setattr("steermoe.decode.joint.Branches", State)
    monkeypatch.setattr("steermoe.decode.joint.GAP", 1e9)
    logprobs = torch.full((1, 4, 3), -12.0, dtype=torch.float64)
    for frame, place in enumerate([1, 0, 2, 0]):
        logprobs[0, frame, place] = 0.0
    said = Heard(logprobs, torch.tensor([[1, 2]]))
    (found,) = joint_search(Written(), 1, None, said, Marks(), [50], DecodeConf(beam=3, ctc_weight=0.4, unheard=unheard))
    assert found.tokens == expected
    written = sum(float(Written().after(tuple(expected[:at]))[token]) for at, token in enumerate([*expected, 0]))
    heard_ab = math.log(texts(said)[(1, 2)])
    assert found.score == pytest.approx(0.6 * written + 0.4 * heard_ab, rel=1e-5)


def test_a_token_that_ends_a_line_may_be_a_mark_too(search, monkeypatch):
    class Llm:
        def encode(self, text):
            return {"\n": [20], "?": [30], "。": [31]}[text]

    units = ByteUnits.__new__(ByteUnits)
    units.spelling = {20: b"\n", 21: b"?\n", 22: b"a\n", 23: b"\n\n", 24: "。\n\n".encode(), 25: b"?", 26: b"!\n"}
    assert ends_of_lines(Llm(), units, "?。") == {20: [], 21: [30], 24: [31]} and ends_of_lines(Llm(), units, "") == {20: []}
    monkeypatch.setattr("steermoe.decode.joint.ends_of_lines", lambda llm, units, unheard: {0: [30]})
    logprobs = torch.full((1, 4, 3), -12.0, dtype=torch.float64)
    for frame, place in enumerate([1, 0, 2, 0]):
        logprobs[0, frame, place] = 0.0
    said, llm = Heard(logprobs, torch.tensor([[1, 2]])), Words(likes=16)
    monkeypatch.setattr(llm, "stop_ids", set)
    (found,) = search(said, Marks(), llm=llm, beam=9, ctc_weight=0.5, unheard=".", context="a line\n")
    assert found.tokens[-1] == 30 and found.ended == "end"


def test_no_two_marks_in_a_row_and_none_in_front(search):
    """However much the LLM likes them."""
    logprobs = torch.full((1, 4, 3), -12.0, dtype=torch.float64)
    for frame, place in enumerate([1, 0, 2, 0]):
        logprobs[0, frame, place] = 0.0
    said, llm = Heard(logprobs, torch.tensor([[1, 2]])), Words(likes=16)
    (found,) = search(said, Marks(), llm=llm, beam=9, ctc_weight=0.5, unheard=".")
    assert [token for token in found.tokens if token != 16] in ([10, 12], [15, 12])
    assert found.tokens[0] != 16 and not any(pair == (16, 16) for pair in zip(found.tokens, found.tokens[1:]))


def test_rows_do_not_disturb_each_other(search):
    both = heard(frames=6, tokens=3, batch=2, seed=7)
    for row, found in enumerate(search(both, beam=4, ctc_weight=0.4)):
        (alone,) = search(Heard(both.logprobs_bup[row : row + 1], both.units_bp[row : row + 1]), beam=4, ctc_weight=0.4)
        assert found.tokens == alone.tokens and found.score == pytest.approx(alone.score, rel=1e-5)


def test_an_llm_that_loops_cannot_write_what_was_not_heard(search):
    logprobs = torch.full((1, 6, 3), -12.0, dtype=torch.float64)
    for frame, place in enumerate([1, 0, 2, 2, 0, 0]):
        logprobs[0, frame, place] = 0.0
    (found,) = search(Heard(logprobs, torch.tensor([[10, 11]])), beam=4, ctc_weight=0.5)
    assert found.tokens == [10, 11] and found.ended == "end"


def test_a_limit_ends_a_hypothesis(search):
    logprobs = torch.full((1, 9, 3), -30.0, dtype=torch.float64)
    for frame, place in enumerate([1, 2] * 4 + [1]):
        logprobs[0, frame, place] = 0.0
    (found,) = search(Heard(logprobs, torch.tensor([[10, 11]])), beam=2, ctc_weight=0.9, limit=3)
    assert len(found.tokens) <= 3


def test_heard_and_reading_alone_as_in_a_batch():
    torch.manual_seed(1)
    scores, lens = 4 * torch.randn(2, 7, 30), torch.tensor([7, 4])
    together = hear(scores, lens, sure=1.0)
    for row, length in enumerate(lens.tolist()):
        alone = hear(scores[row : row + 1, :length], lens[row : row + 1], sure=1.0)
        count = alone.units_bp.shape[1]
        assert together.units_bp[row, :count].tolist() == alone.units_bp[0].tolist()
        torch.testing.assert_close(together.logprobs_bup[row, :length, : count + 1], alone.logprobs_bup[0])
        assert best_units(scores, lens)[row] == best_units(scores[row : row + 1, :length], lens[row : row + 1])[0]
    assert together.logprobs_bup[1, 4:, 0].tolist() == [0.0] * 3 and float(together.logprobs_bup[1, 4:, 1:].max()) < -1e8


def test_frames_that_surely_say_nothing_change_no_prefix_score():
    torch.manual_seed(3)
    scores = 3 * torch.randn(2, 12, 6)
    scores[:, [0, 1, 4, 5, 6, 10], 0] += 30.0
    scores[0, 3], scores[0, 7] = scores[0, 3] * 0 + 5 * torch.eye(6)[2], 5 * torch.eye(6)[2]  # one unit before and after the pause
    lens = torch.tensor([12, 9])
    short, whole = hear(scores, lens), hear(scores, lens, sure=1.0)
    assert short.logprobs_bup.shape[1] == 12 - 3 and short.units_bp.tolist() == whole.units_bp.tolist()
    for row in range(2):
        for units in ([1], [1, 1], [2, 1, 3]):
            ends = []
            for heard_ in (short, whole):
                prefixes = Prefixes(heard_)
                number = number_of(prefixes, [heard_.units_bp[row].tolist().index(unit) + 1 for unit in units], row)
                ends.append(float(prefixes.ends([number])))
            assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_a_temperature_divides_scores_and_decides_nothing_about_silence():
    scores, lens = 3 * torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(5)), torch.tensor([9, 6])
    plain, warm = hear(scores, lens, sure=1.0), hear(2 * scores, lens, sure=1.0, temperature=2.0)
    torch.testing.assert_close(warm.logprobs_bup, plain.logprobs_bup)
    scores[:, 3:6, 0] = 40.0  # surely nothing, at a temperature of 1
    assert hear(scores, lens, temperature=9.0).logprobs_bup.shape == hear(scores, lens).logprobs_bup.shape == (2, 7, 6)


def test_reading_of_a_hand_drawn_row():
    scores = torch.zeros(1, 7, 10)
    for frame, place in enumerate([0, 7, 7, 0, 7, 5, 5]):
        scores[0, frame, place] = 5.0
    assert best_units(scores, torch.tensor([6])) == [[6, 6, 4]]
