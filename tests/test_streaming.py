"""Text while audio arrives: what is final is right and said once, comes soon, and costs a bounded amount of reading."""

from __future__ import annotations

import numpy as np
import pytest
from toneme import NAMES, RATE, listen, silence, speak, text

from steermoe.streaming import LONGEST_SEGMENT_S, Stream, said_already


def words(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, len(NAMES), count).tolist()


def run(samples, chunk_s, read=listen, limit=30.0):
    lengths = []

    def counted(samples_n):
        lengths.append(len(samples_n) / RATE)
        return read(samples_n)

    stream = Stream(counted, limit)
    size = round(chunk_s * RATE)
    partials = [stream.push(samples[i : i + size]) for i in range(0, len(samples), size)] + [stream.finish()]
    assert partials[-1].open == "" and partials[-1].heard == len(samples) / RATE
    return "".join(partial.new for partial in partials), partials, lengths


@pytest.mark.parametrize("chunk_s", [0.37, 1.0, 2.0, 3.0])
def test_sentences_with_pauses(chunk_s):
    sentences = [words(3 + seed % 7, seed) for seed in range(12)]
    samples = np.concatenate([np.concatenate([speak(s), silence(0.35 + 0.1 * (len(s) % 5))]) for s in sentences])
    final, partials, lengths = run(samples, chunk_s)
    assert final == text(sum(sentences, []))
    assert max(lengths) <= LONGEST_SEGMENT_S
    assert any(partial.new or partial.open for partial in partials[:2])


@pytest.mark.parametrize("limit", [6.0, 30.0])
def test_nobody_pauses(limit):
    spoken = words(120)
    final, _, lengths = run(speak(spoken), 2.0, limit=limit)
    assert final == text(spoken) and max(lengths) <= min(limit, LONGEST_SEGMENT_S)


def test_a_chunk_longer_than_what_can_be_read():
    spoken = words(80)
    final, _, lengths = run(speak(spoken), 25.0, limit=6.0)
    assert final == text(spoken) and max(lengths) <= 6.0


def test_silence_is_not_read_and_what_comes_after_it_is_heard():
    spoken = words(4)
    samples = np.concatenate([silence(50.0), speak(spoken), silence(50.0), speak(spoken), silence(3.0)])
    final, _, lengths = run(samples, 1.0)
    assert final == f"{text(spoken)} {text(spoken)}" and sum(lengths) < 30
    assert run(silence(20.0), 2.0)[::2] == ("", []) and run(np.zeros(40000, np.float32), 1.0)[0] == ""


def test_a_pause_makes_words_final_without_a_second_reading():
    spoken = words(4)
    samples = np.concatenate([speak(spoken), silence(0.7)])
    partials = run(samples, len(samples) / RATE)[1]
    assert partials[0].new == text(spoken) and partials[1].new == ""


def test_open_words_may_change_and_final_ones_are_agreed_on_twice():
    readings = iter(["the", "the cat", "the cat sad on", "the cat sat on a", "the cat sat on a mat"])
    stream = Stream(lambda samples_n: next(readings))
    partials = [stream.push(speak(words(2, seed))) for seed in range(4)] + [stream.finish()]
    assert [partial.open for partial in partials] == ["the", "cat", "sad on", "sat on a", ""]
    assert [partial.new for partial in partials] == ["", "the", " cat", "", " sat on a mat"]


def test_a_final_word_that_a_later_reading_changes_is_not_said_again():
    readings = iter(["the cat", "the cat sat", "a cat sat down", "that cat sat down", "that cat sat down now"])
    stream = Stream(lambda samples_n: next(readings))
    assert "".join(stream.push(speak(words(2, seed))).new for seed in range(4)) + stream.finish().new == "the cat sat down now"


def test_characters_are_joined_without_spaces():
    readings = iter(["你好", "你好世界", "你好世界 ok"])
    stream = Stream(lambda samples_n: next(readings))
    assert "".join(stream.push(speak(words(2, seed))).new for seed in range(2)) + stream.finish().new == "你好世界 ok"


@pytest.mark.parametrize(
    "final, units, count",
    [
        *(("", "one two", 0), ("one two", "one two three", 2), ("one two", "", 0), ("one two", "won two three", 2)),
        *(("maybe we", "may be we go", 3), ("may be we", "maybe we go", 2), ("one two three", "two three four", 2)),
    ],
)
def test_said_already(final, units, count):
    assert said_already(final.split(), units.split()) == count
