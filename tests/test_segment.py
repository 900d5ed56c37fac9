"""Cutting long recordings: nothing said is lost, said twice or cut, whatever the pauses are like."""

from __future__ import annotations

import numpy as np
import pytest
from toneme import GAP_S, NAMES, RATE, listen, silence, speak, text

from steermoe.data.segment import Cut, Pause, choose_cut, cut_at_pauses, find_pauses, levels
from steermoe.transcript import Transcript


def words(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, len(NAMES), count).tolist()


def transcribe(samples, limit, block=RATE * 7):
    transcript, pieces = Transcript(), []
    for piece in cut_at_pauses((samples[i : i + block] for i in range(0, len(samples), block)), limit):
        assert 0 < len(piece.samples_n) <= limit * RATE
        at = round(piece.start * RATE)
        assert np.array_equal(piece.samples_n, samples[at : at + len(piece.samples_n)])
        transcript.add(piece.start, piece.end, listen(piece.samples_n), piece.overlaps)
        pieces.append(piece)
    return transcript, pieces


def test_the_listener_of_these_tests():
    spoken = words(30)
    assert listen(speak(spoken)) == text(spoken) and listen(silence(3.0)) == ""
    assert listen(speak([3, 4])[: round(0.7 * RATE)]) == f"{NAMES[3]} x"


def test_a_short_recording_is_one_piece_as_it_is():
    samples = np.concatenate([silence(4.0), speak(words(5)), silence(3.0)])
    pieces = list(cut_at_pauses([samples[:1000], samples[1000:]], 30.0))
    assert len(pieces) == 1 and pieces[0].start == 0 and np.array_equal(pieces[0].samples_n, samples)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01])
def test_cut_in_pauses(noise):
    """Sentences of 2 to 5 s, pauses of 0.4 to 1.2 s; the loudest noise is 25 dB below the words."""
    rng, spoken, parts = np.random.default_rng(0), [], []
    for _ in range(16):
        sentence = words(int(rng.integers(4, 11)), int(rng.integers(1000)))
        spoken += sentence
        parts += [speak(sentence, noise=noise), silence(float(rng.uniform(0.4, 1.2)), noise)]
    transcript, pieces = transcribe(np.concatenate(parts), 15.0)
    assert transcript.text == text(spoken)
    assert not any(piece.overlaps for piece in pieces)
    assert all(4.0 < len(piece.samples_n) / RATE < 15.0 for piece in pieces[:-1])


@pytest.mark.parametrize("limit", [6.0, 10.0, 30.0])
def test_without_pauses_pieces_overlap_and_words_are_joined(limit):
    spoken = words(150)
    transcript, pieces = transcribe(speak(spoken), limit)
    assert len(pieces) > 2 and all(piece.overlaps for piece in pieces[1:])
    assert transcript.text == text(spoken)


def test_words_run_into_each_other():
    """Softest in the middle of words: every cut maims one."""
    spoken = [first for first, second in zip(words(200), words(200)[1:]) if first != second]
    assert transcribe(speak(spoken, gap=0.0, hollow=True), 8.0)[0].text == text(spoken)


def test_long_silence_is_left_out_and_times_are_right():
    samples = np.concatenate([silence(40.0), speak(words(5)), silence(65.0), speak([7]), silence(35.0)])
    transcript, pieces = transcribe(samples, 10.0)
    said = 5 * (0.4 + GAP_S)
    assert [segment.text for segment in transcript.segments] == [text(words(5)), NAMES[7]]
    first, second = transcript.segments
    assert 39.5 < first.start < 40.0 and 40 + said - GAP_S < first.end < 40 + said + 0.5
    assert 104.5 + said < second.start < 105 + said and second.end < 106 + said
    assert list(cut_at_pauses([silence(70.0)], 10.0)) == [] == list(cut_at_pauses([np.zeros(16000 * 70, np.float32)], 10.0))


def test_offset_and_hum_do_not_hide_pauses():
    sentences = [words(8, seed) for seed in range(8)]
    samples = np.concatenate([np.concatenate([speak(sentence), silence(0.8)]) for sentence in sentences])
    hum = 0.05 + 0.05 * np.sin(2 * np.pi * 50 * np.arange(len(samples)) / RATE)
    pieces = list(cut_at_pauses([samples + hum.astype(np.float32)], 12.0))
    assert len(pieces) > 2 and not any(piece.overlaps for piece in pieces)


def test_pauses_and_cuts_by_hand():
    level_f = np.full(1000, -30.0, np.float32)
    for first, stop in ((100, 140), (400, 500), (550, 640), (700, 720)):
        level_f[first:stop] = -70
    pauses = find_pauses(level_f, -60.0)
    assert pauses == [Pause(100, 140), Pause(400, 500), Pause(550, 640)]  # the last is too short
    assert choose_cut(level_f, pauses, 333, 666) == Cut(430, 470)  # the longest, with 0.3 s on both sides
    assert choose_cut(level_f, pauses[:1], 333, 666) == Cut(120, 120)
    cut = choose_cut(level_f, [], 333, 666)
    assert cut.overlaps and 400 < (cut.end + cut.then) / 2 < 640 and cut.end - cut.then == 200


def test_levels():
    tone = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(1605) / RATE).astype(np.float32)
    assert levels(tone).shape == (10,) and np.ptp(levels(tone)[1:]) < 1
    assert levels(np.zeros(1600, np.float32)).max() == pytest.approx(-90)
    assert len(levels(tone[:100])) == 0
