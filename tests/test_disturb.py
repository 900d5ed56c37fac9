"""Conditions of a robustness test: signal-to-noise ratios that are met, other voices, tempo, loudness, clips without speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from steermoe.data import disturb
from steermoe.data.augment import Recording, read_recordings
from steermoe.data.disturb import Disturb, audible, babble_source, change_gain, change_tempo, noise_source, spread, utterances
from steermoe.errors import UserError

RATE = 16000


def tone(hertz: float, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def strength(samples_n: np.ndarray, hertz: float) -> float:
    """Amplitude of the component at `hertz`."""
    places = np.arange(len(samples_n)) / RATE
    return 2 * abs(np.mean(samples_n * np.exp(-2j * np.pi * hertz * places)))


def power(samples_n: np.ndarray) -> float:
    return float(np.mean(samples_n.astype(np.float64) ** 2))


def make_data(folder: Path, speakers: dict[str, list[np.ndarray]]) -> Path:
    """A data directory; utterance n of speaker s is s-n."""
    folder.mkdir()
    lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    for spk, waves in sorted(speakers.items()):
        for index, wave in enumerate(waves):
            utt, file = f"{spk}-{index}", folder / f"{spk}-{index}.wav"
            soundfile.write(file, wave, RATE, subtype="FLOAT")
            for name, value in (("wav.scp", file), ("text", f"words of {spk}"), ("utt2spk", spk)):
                lines[name].append(f"{utt} {value}\n")
    for name, rows in lines.items():
        (folder / name).write_text("".join(rows))
    return folder


@pytest.fixture()
def entries(tmp_path) -> list[dict]:
    data = make_data(tmp_path / "test", {"s1": [tone(300), tone(400, 2.0)], "s2": [tone(500, 3.0)]})
    return utterances(data, 30.0)


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def hissing(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(0, 0.2, size).astype(np.float32)


def test_the_test_set_is_read_as_it_is_and_what_is_too_long_is_left_out(entries, tmp_path):
    assert [(e["utt"], e["spk"], e["text"], e["duration"]) for e in entries] == [
        ("s1-0", "s1", "words of s1", 1.0), ("s1-1", "s1", "words of s1", 2.0), ("s2-0", "s2", "words of s2", 3.0),
    ]  # fmt: skip
    assert [e["utt"] for e in utterances(tmp_path / "test", 2.0)] == ["s1-0", "s1-1"]
    assert [e["utt"] for e in utterances(tmp_path / "test", 30.0, max_utts=2)] == ["s1-0", "s1-1"]
    with pytest.raises(UserError, match="test: no utterance of at most 0.5 s"):
        utterances(tmp_path / "test", 0.5)
    clean = Disturb(entries, 1).clean()
    assert clean.name == "clean" and np.array_equal(clean.samples(entries[0]), tone(300))


def test_spread():
    assert spread(range(10), 3) == [0, 3, 6] and spread("ab", 5) == ["a", "b"] and spread("ab", 2) == ["a", "b"]


def test_segments_are_cut_out(tmp_path):
    data = make_data(tmp_path / "d", {"r": [np.concatenate([tone(300), tone(900)])]})
    (data / "segments").write_text("r-0 r-0 1.0 1.5\n")
    (entry,) = utterances(data, 30.0)
    samples_n = Disturb([entry], 1).clean().samples(entry)
    assert entry["duration"] == 0.5 and np.array_equal(samples_n, tone(900)[:8000])


# ---- noise


@pytest.mark.parametrize("snr", [20, 0, -5])
def test_the_ratio_is_met_with_the_same_noise_at_every_ratio(entries, snr):
    disturbed = Disturb(entries, 1)
    condition, other = (disturbed.noisy("x", hissing, "made", at) for at in (snr, 7.5))
    assert (condition.name, other.name) == (f"x_{snr}dB", "x_7.5dB") and (condition.noise, condition.snr) == ("x", snr)
    for entry in entries:
        clean_n = disturbed.read(entry)
        added_n = condition.samples(entry) - clean_n
        assert 10 * np.log10(power(clean_n) / power(added_n)) == pytest.approx(snr, abs=0.01)
        assert np.corrcoef(added_n, other.samples(entry) - clean_n)[0, 1] > 0.999
        assert np.array_equal(condition.samples(entry), condition.samples(entry))


def test_another_utterance_seed_or_noise_is_another_draw(entries):
    first = Disturb(entries, 1).noisy("x", hissing, "", 0)
    second = Disturb(entries, 2).noisy("x", hissing, "", 0)
    third = Disturb(entries, 1).noisy("y", hissing, "", 0)
    clean_n = tone(300)
    base_n = first.samples(entries[0]) - clean_n
    for condition in (second, third):
        assert abs(np.corrcoef(base_n, condition.samples(entries[0]) - clean_n)[0, 1]) < 0.1
    assert abs(np.corrcoef(base_n, (first.samples(entries[1]) - tone(400, 2.0))[:RATE])[0, 1]) < 0.1
    facts = [condition.made_from for condition in (first, second, Disturb(entries, 1).noisy("x", hissing, "else", 0))]
    assert facts[0] != facts[1] != facts[2] != facts[0]


def test_silence_between_sounds_is_not_taken_for_noise():
    draws = iter([np.zeros(10, np.float32), np.zeros(10, np.float32), np.ones(10, np.float32)])
    assert audible(lambda rng, size: next(draws), np.random.default_rng(1), 10, "x")[0] == 1.0
    with pytest.raises(UserError, match="--noise x: 100 pieces were drawn and all are silent"):
        audible(lambda rng, size: np.zeros(size, np.float32), np.random.default_rng(1), 10, "x")


def test_a_folder_of_sounds_at_any_depth(tmp_path):
    for name in ("b/loud.wav", "a/deep/soft.ogg"):
        (tmp_path / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name, noise(1), RATE)
    (tmp_path / "README.txt").write_text("not audio")
    draw, recordings = noise_source(str(tmp_path))
    assert recordings == [(f"{tmp_path}/a/deep/soft.ogg", 0.0, 1.0), (f"{tmp_path}/b/loud.wav", 0.0, 1.0)]
    assert draw(np.random.default_rng(1), 40000).shape == (40000,)  # longer than any: repeated
    with pytest.raises(UserError, match="^--noise: nowhere: no such data directory"):
        noise_source("nowhere")
    (tmp_path / "b/loud.wav").write_bytes(b"")
    with pytest.raises(UserError, match="^here: .*loud.wav: empty audio file"):
        read_recordings(str(tmp_path), "here")


def test_babble_is_several_others_equally_loud_and_never_a_test_speaker(tmp_path):
    hertz = {f"s{number}": 200 + 100 * number for number in range(10)}
    voices = {spk: [tone(hz, level=0.01 * (1 + number))] for number, (spk, hz) in enumerate(hertz.items())}
    data = make_data(tmp_path / "train", voices)
    draw, utts = babble_source(data, {"s0", "s1", "elsewhere"})
    assert utts == [f"s{number}-0" for number in range(2, 10)]
    heard = set()
    for seed in range(6):
        babble_n = draw(np.random.default_rng(seed), 2 * RATE)
        strengths = {spk: strength(babble_n, hz) for spk, hz in hertz.items()}
        loud = {spk for spk, level in strengths.items() if level > 0.1}
        assert len(loud) == disturb.BABBLE_SPEAKERS and not loud & {"s0", "s1"}
        levels = [strengths[spk] for spk in loud]
        assert max(levels) / min(levels) < 1.01
        heard |= loud
    assert len(heard) == 8


def test_babble_needs_two_others(tmp_path):
    data = make_data(tmp_path / "train", {"s0": [tone(300)], "s1": [tone(400)]})
    with pytest.raises(UserError, match="train: 1 speakers who are not in the test set, 2 are needed; --babble none"):
        babble_source(data, {"s0"})
    (data / "wav.scp").write_text("s0-0 sox a.wav - |\ns1-0 b.wav\n")
    with pytest.raises(UserError, match="wav.scp:1: a command"):
        babble_source(data, set())


# ---- tempo and loudness


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_tempo_changes_the_length_and_not_the_pitch(factor):
    samples_n = np.concatenate([tone(200), tone(1000)])
    changed_n = change_tempo(samples_n, factor)
    assert changed_n.dtype == np.float32 and len(changed_n) == round(2 * RATE / factor)
    half = len(changed_n) // 2
    for part_n, present, absent in ((changed_n[: half - 800], 200, 1000), (changed_n[half + 800 :], 1000, 200)):
        assert strength(part_n, present) > 0.28 and strength(part_n, absent) < 0.02
        assert np.abs(part_n).max() < 0.31


def test_tempo_1_changes_nothing_and_short_audio_is_no_problem():
    samples_n = noise(1)
    assert change_tempo(samples_n, 1.0) is samples_n
    assert change_tempo(samples_n[:3], 0.5).shape == (6,) and change_tempo(samples_n[:1], 2.0).shape == (0,)


def test_tempo_leaves_out_what_becomes_too_long(entries):
    condition = Disturb(entries, 1, max_seconds=3.5).tempo(0.8)
    assert condition.name == "tempo_0.8"
    assert [(e["utt"], e["duration"]) for e in condition.entries] == [("s1-0", 1.25), ("s1-1", 2.5)]
    assert len(condition.samples(condition.entries[0])) == 20000 and entries[0]["duration"] == 1.0


def test_gain_stops_at_full_scale():
    samples_n = tone(300, level=0.4)
    assert np.allclose(change_gain(samples_n, -20), 0.1 * samples_n)
    assert np.allclose(change_gain(samples_n, 6), 10**0.3 * samples_n)
    assert np.abs(change_gain(samples_n, 20)).max() == pytest.approx(1.0)
    assert np.array_equal(change_gain(3 * samples_n, 20), 3 * samples_n)  # over full scale as it came
    assert not change_gain(np.zeros(5, np.float32), 20).any()


def test_loudness_is_named_with_its_sign(entries):
    quiet, loud = (Disturb(entries, 1).loudness(gain) for gain in (-20, 20))
    assert (quiet.name, loud.name) == ("loudness_-20dB", "loudness_+20dB")
    assert np.allclose(quiet.samples(entries[0]), 0.1 * tone(300))


# ---- nobody speaks


def test_clips_that_are_made(entries):
    made = {kind: Disturb(entries, 1).nobody(kind, 5) for kind in ("silence", "white", "pink")}
    for kind, condition in made.items():
        assert not condition.speech and condition.name == f"nobody_{kind}" and len(condition.entries) == 5
        assert all(entry["text"] == "" and 1 <= entry["duration"] <= 10 for entry in condition.entries)
        assert [entry["utt"] for entry in condition.entries[:2]] == [f"{kind}-0000", f"{kind}-0001"]
        waves = [condition.samples(entry) for entry in condition.entries]
        assert [len(wave) for wave in waves] == [round(entry["duration"] * RATE) for entry in condition.entries]
        assert len({len(wave) for wave in waves}) > 1
        if kind == "silence":
            assert not any(wave.any() for wave in waves)
            continue
        levels = [10 * np.log10(power(wave)) for wave in waves]
        assert all(-60.01 <= level <= -19.99 for level in levels) and len(set(levels)) == 5
        spectrum = np.abs(np.fft.rfft(waves[0])) ** 2
        low, high = (spectrum[int(first * len(spectrum)) : int(2 * first * len(spectrum))].mean() for first in (0.05, 0.4))
        assert low / high == pytest.approx(8.0 if kind == "pink" else 1.0, rel=0.2)
    again = Disturb(entries, 1).nobody("white", 5)
    assert np.array_equal(again.samples(again.entries[0]), made["white"].samples(made["white"].entries[0]))


def test_noise_alone_is_cut_at_ten_seconds(tmp_path, entries):
    soundfile.write(tmp_path / "long.wav", noise(1, 12.0), RATE, subtype="FLOAT")
    recordings = [Recording(f"{tmp_path}/long.wav", start, seconds) for start, seconds in ((0.0, 12.0), (1.0, 2.0), (3.0, 1.0))]
    condition = Disturb(entries, 1).noise_alone("sounds", recordings, 2)
    assert condition.name == "nobody_sounds" and not condition.speech
    clips = [(entry["utt"], entry["start"], entry["duration"]) for entry in condition.entries]
    assert clips == [("sounds-0000", 0.0, 10.0), ("sounds-0001", 1.0, 2.0)]
    assert np.array_equal(condition.samples(condition.entries[1]), noise(1, 12.0)[RATE : 3 * RATE])
