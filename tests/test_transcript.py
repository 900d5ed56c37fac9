"""Segments to one text, overlapping pieces joined, and the formats in which it is written."""

from __future__ import annotations

import json

import pytest

from steermoe.transcript import Segment, Transcript, format_transcript, join_texts, match_overlap, split_units


@pytest.mark.parametrize(
    "before, after, joined",
    [
        ("the cat sat on the ma", "at on the mat and slept", "the cat sat on the mat and slept"),
        ("one two three", "two three four", "one two three four"),
        ("One, two. Three", "two three, four", "One, two. Three four"),  # neither case nor punctuation parts words
        ("one two", "three four", "one two three four"),  # nothing in common: nothing is lost
        ("the big dog ran over there", "hm the quick fox", "the big dog ran over there hm the quick fox"),  # a match by chance
        ("x a b c d", "a q c d y", "x a b c d y"),  # the two pieces disagree on a word
        ("我们今天去公", "今天去公园玩", "我们今天去公园玩"),
        ("", "two", "two"),
        ("two", "", "two"),
        ("one two", "one two", "one two"),
    ],
)
def test_overlapping_pieces(before, after, joined):
    transcript = Transcript()
    transcript.add(0.0, 10.0, before, False)
    transcript.add(8.0, 20.0, after, True)
    assert transcript.text == joined
    assert all(a.end <= b.start for a, b in zip(transcript.segments, transcript.segments[1:]))


def test_match_by_hand():
    assert match_overlap("the cat sat on the ma".split(), "at on the mat and slept".split()) == (5, 3)
    assert match_overlap([], ["a"]) == (0, 0) and match_overlap(["a"], []) == (1, 0)
    assert match_overlap([*"abcdefgh"] * 5, [*"fgh", "x"]) == (40, 3)  # of equal runs the one at the end


def test_pieces_apart_repeat_what_was_said_twice():
    transcript = Transcript()
    for start, text in ((0, "no"), (5, "no"), (10, ""), (15, "no no")):
        transcript.add(start, start + 1, text, False)
    assert transcript.text == "no no no no" and [segment.start for segment in transcript.segments] == [0, 5, 15]


def test_units_and_spaces():
    assert split_units(" two words 你好 ok ") == ["two", " words", " 你", "好", " ok"]
    assert "".join(split_units("it's, 1.5")) == "it's, 1.5" and split_units("  ") == []
    pairs = {("a", "b"): "a b", ("你", "好"): "你好", ("", "b"): "b", ("a", ""): "a", ("你", "b"): "你 b"}
    assert all(join_texts(*pair) == joined for pair, joined in pairs.items())


def test_formats():
    transcript = Transcript([Segment(0.0, 2.5, "one"), Segment(3661.25, 3662.0, "two")])
    assert format_transcript(transcript, "a.wav", "text") == "a.wav\tone two"
    assert json.loads(format_transcript(transcript, "a.wav", "json")) == {
        "file": "a.wav",
        "text": "one two",
        "segments": [{"start": 0.0, "end": 2.5, "text": "one"}, {"start": 3661.25, "end": 3662.0, "text": "two"}],
    }
    assert format_transcript(transcript, "a.wav", "srt").split("\n") == [
        *("1", "00:00:00,000 --> 00:00:02,500", "one", "", "2", "01:01:01,250 --> 01:01:02,000", "two", "")
    ]
    assert format_transcript(transcript, "a.wav", "vtt").split("\n")[:4] == ["WEBVTT", "", "00:00:00.000 --> 00:00:02.500", "one"]
    assert format_transcript(Transcript(), "a.wav", "vtt") == "WEBVTT\n" and format_transcript(Transcript(), "a.wav", "srt") == ""
