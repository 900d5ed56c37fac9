"""Augmentation: what each option does to the signal, that off means off, and that (seed, epoch, utterance) decide everything."""

import json

import numpy as np
import pytest
import soundfile
import torch

import tiny
from steermoe.bin.cli import Parser, parse_with_config
from steermoe.config import load_config
from steermoe.data.augment import (
    Augment, AugmentConf, add_noise, change_speed, mask_feats, read_recordings, reverberate, simulate_rir,
)  # fmt: skip
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.features import WhisperLogMel, num_frames
from steermoe.errors import UserError

RATE = 16000


def tone(seconds=1.0, hertz=1000.0, level=0.1):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def hiss(size, seed=0, level=0.01):
    return (level * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def decibels(samples_n):
    return 10 * np.log10(np.mean(samples_n.astype(np.float64) ** 2))


def write_scp(folder, name, clips):
    """clips: {name: samples} -> a wav.scp-like file that names a WAV file for each."""
    for clip, samples_n in clips.items():
        soundfile.write(folder / f"{clip}.wav", samples_n, RATE, subtype="FLOAT")
    scp = folder / f"{name}.scp"
    scp.write_text("".join(f"{clip} {folder / clip}.wav\n" for clip in sorted(clips)))
    return str(scp)


@pytest.fixture()
def data(tmp_path):
    """Three utterances: data.jsonl, audio, and the features that stage 1 would dump of it."""
    from steermoe.data.ark import ArkWriter

    lines = []
    with ArkWriter(tmp_path / "feats.ark", 0) as writer:
        for number, seconds in enumerate((1.0, 0.7, 1.3)):
            samples_n = tone(seconds, 300 + 200 * number) + hiss(round(seconds * RATE), number)
            soundfile.write(tmp_path / f"{number}.wav", samples_n, RATE, subtype="FLOAT")
            feats_fm = WhisperLogMel(80)(torch.from_numpy(samples_n))
            offset = writer.write(f"utt{number}", feats_fm.numpy())
            line = {"utt": f"utt{number}", "spk": "s", "text": "one", "feats": f"{tmp_path}/feats.ark:{offset}"}
            line |= {"num_frames": len(feats_fm), "duration": seconds, "num_tokens": 1, "wav": f"{tmp_path}/{number}.wav"}
            lines.append(json.dumps(line | {"start": None, "end": None}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def dataset(path, seed=1, **conf):
    return AudioTextDataset(path, Augment(AugmentConf(**conf), seed), WhisperLogMel(80))


# Speed


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.5, 1.37])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor):
    fast = change_speed(tone(2.0), factor, RATE)
    assert fast.dtype == np.float32 and abs(len(fast) - 2 * RATE / factor) <= 1
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast)), 1 << 18))
    assert spectrum.argmax() * RATE / (1 << 18) == pytest.approx(1000 * factor, rel=1e-3)
    assert decibels(fast) == pytest.approx(decibels(tone(2.0)), abs=0.1)


def test_speed_one_is_the_same_samples():
    assert np.array_equal(change_speed(tone(), 1.0, RATE), tone())


def test_every_factor_is_drawn_about_as_often():
    augment, samples_n = Augment(AugmentConf(speed=[0.9, 1.0, 1.1]), 1), tone(0.1)
    lengths = [len(augment.samples(samples_n, f"utt{i}", 0)) for i in range(300)]
    assert sorted(set(lengths)) == [1455, 1600, 1778] and all(70 < lengths.count(n) < 130 for n in (1455, 1600, 1778))


def test_speeds_are_drawn_evenly_and_anew_in_every_epoch():
    augment = Augment(AugmentConf(speed=[0.9, 1.0, 1.1]), 1)
    drawn = [[augment.speed(f"utt{index}", epoch) for index in range(600)] for epoch in (0, 1)]
    assert all(150 < row.count(speed) < 250 for row in drawn for speed in (0.9, 1.0, 1.1))
    assert 150 < sum(one == other for one, other in zip(*drawn)) < 250
    assert drawn[0] == [Augment(AugmentConf(speed=[0.9, 1.0, 1.1]), 1).speed(f"utt{index}", 0) for index in range(600)]


def test_what_would_get_too_long_for_the_encoder_keeps_its_speed(data):
    slow = Augment(AugmentConf(speed=[0.8]), 1)
    assert len(slow.samples(tone(24.0), "u", 0, max_seconds=30.0)) == 30 * RATE
    assert len(slow.samples(tone(24.1), "u", 0, max_seconds=30.0)) == round(24.1 * RATE)
    slowed = dataset(data, speed=[0.5])
    slowed.frontend.max_frames = 150
    assert [len(slowed[i].feats_fm) for i in range(3)] == [num_frames(16000), num_frames(22400), num_frames(20800)]
    assert slowed.lengths() == [102, 144, 132]


def test_lengths_are_those_of_the_epochs_speeds(data):
    perturbed = dataset(data, speed=[0.9, 1.1], reverb="simulated", reverb_prob=1.0)
    plain, seen = AudioTextDataset(data), set()
    for unchanged in (plain, dataset(data, time_masks=2), dataset(data, reverb="simulated", reverb_prob=1.0)):
        assert unchanged.lengths() == [102, 72, 132]
    for perturbed.epoch in range(6):
        lengths = perturbed.lengths()
        assert all(abs(len(perturbed[i].feats_fm) - length) <= 2 for i, length in enumerate(lengths))
        seen.add(tuple(lengths))
    assert len(seen) > 2 and {first for first, _, _ in seen} == {93, 114}


# Noise


@pytest.mark.parametrize("snr", [-5.0, 0.0, 5.0, 20.0])
def test_the_signal_to_noise_ratio_is_exact(snr):
    speech = np.concatenate([tone(0.5), np.zeros(RATE // 2, np.float32)])
    added = add_noise(speech, hiss(RATE), snr) - speech
    assert decibels(speech) - decibels(added) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_noise_is_repeated_or_cut_to_the_utterance(tmp_path, seconds):
    scp = write_scp(tmp_path, "noise", {"a": hiss(round(seconds * RATE))})
    augment, speech = Augment(AugmentConf(noise=scp, noise_prob=1.0, noise_snr=[10, 10]), 1), tone(1.5)
    pieces = [augment.samples(speech, "utt", epoch) - speech for epoch in range(3)]
    for piece in pieces:
        assert piece.shape == speech.shape and decibels(speech) - decibels(piece) == pytest.approx(10, abs=0.1)
        if seconds == 0.3:
            assert np.allclose(piece[:4800], piece[4800:9600], atol=1e-6)
    assert not np.allclose(pieces[0], pieces[1], atol=1e-4)  # another place in another epoch


def test_ratios_are_drawn_from_the_range_for_the_asked_share(tmp_path):
    scp = write_scp(tmp_path, "noise", {"a": hiss(RATE), "b": tone(1.0, 3000)})
    augment, speech = Augment(AugmentConf(noise=scp, noise_prob=0.5, noise_snr=[5, 20]), 1), tone(0.1)
    added = [augment.samples(speech, f"utt{i}", 0) - speech for i in range(200)]
    ratios = [decibels(speech) - decibels(piece) for piece in added if piece.any()]
    assert 75 < len(ratios) < 125 and 4.8 < min(ratios) < 7 and 18 < max(ratios) < 20.2


def test_silence_stays_finite_and_quiet():
    silence = np.zeros(1000, np.float32)
    assert np.array_equal(add_noise(tone(), np.zeros(RATE, np.float32), 5), tone())
    assert -110 < decibels(add_noise(silence, hiss(1000), 5)) < -100
    assert np.array_equal(reverberate(silence, simulate_rir(0.3, 3, np.random.default_rng(1), RATE)), silence)


# Reverberation


def test_a_room_keeps_alignment_and_level():
    rng = np.random.default_rng(1)
    rir = np.concatenate([np.zeros(700, np.float32), simulate_rir(0.4, 6.0, rng, RATE)])  # 44 ms until the sound arrives
    speech = hiss(RATE, level=0.1)
    wet = reverberate(speech, rir)
    assert wet.shape == speech.shape and wet.dtype == np.float32
    assert decibels(wet) == pytest.approx(decibels(speech), abs=1e-3)
    correlation = np.correlate(wet[1000:5000], speech[0:6000], "valid")
    assert correlation.argmax() == 1000


def test_convolution_is_the_textbook_one():
    rir = np.array([0.2, 1.0, 0.0, -0.5], np.float32)
    speech = hiss(50, level=1.0)
    expected = np.convolve(speech, rir)[1:51]
    expected *= np.sqrt(np.mean(speech**2) / np.mean(expected**2))
    assert np.allclose(reverberate(speech, rir), expected, atol=1e-5)
    assert np.allclose(reverberate(speech, np.array([0.3], np.float32)), speech, atol=1e-6)


@pytest.mark.parametrize(("rt60", "ratio"), [(0.2, 0.0), (0.8, 12.0)])
def test_a_simulated_room_has_the_asked_decay_and_ratio(rt60, ratio):
    rir = simulate_rir(rt60, ratio, np.random.default_rng(3), RATE).astype(np.float64)
    assert rir[0] == 1.0 and 10 * np.log10(1 / np.sum(rir[1:] ** 2)) == pytest.approx(ratio, abs=0.01)
    energy = np.cumsum(rir[:0:-1] ** 2)[::-1]  # Schroeder's integral
    curve = 10 * np.log10(energy / energy[0])
    first, last = np.argmax(curve < -5), np.argmax(curve < -25)
    assert 60 * (last - first) / 20 / RATE == pytest.approx(rt60, rel=0.1)


@pytest.mark.parametrize("rooms", ["simulated", "files"])
def test_rooms_are_drawn_for_the_asked_share(tmp_path, rooms):
    if rooms == "files":
        rooms = write_scp(tmp_path, "rir", {"a": simulate_rir(0.3, 3.0, np.random.default_rng(1), RATE)})
    augment, speech = Augment(AugmentConf(reverb=rooms, reverb_prob=0.3), 1), hiss(800)
    changed = sum(not np.array_equal(augment.samples(speech, f"utt{i}", 0), speech) for i in range(200))
    assert 40 < changed < 80


# SpecAugment


def test_masks_are_within_their_bounds_and_reach_them():
    feats_fm = torch.arange(200.0)[:, None] + 1000 * torch.arange(40.0)
    before, widths = feats_fm.clone(), {"freq": set(), "time": set()}
    for seed in range(300):
        masked = mask_feats(feats_fm, np.random.default_rng(seed), 1, 6, 1, 0.05)
        hit = masked != feats_fm
        bands, frames = hit.float().mean(0) > 0.5, hit.float().mean(1) > 0.5
        for name, rows in (("freq", bands), ("time", frames)):
            places = rows.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[-1] + 1)) if places else True  # one piece
            widths[name].add(len(places))
        assert torch.equal(masked[:, bands], feats_fm.mean(0)[bands].expand(200, -1))
    assert widths == {"freq": set(range(7)), "time": set(range(11))}  # 6 bands, 5 % of 200 frames
    assert torch.equal(feats_fm, before)


def test_as_many_masks_as_asked():
    feats_fm = torch.arange(1000.0)[:, None].expand(-1, 80)

    def pieces(count):
        best = 0
        for seed in range(50):
            hit = (mask_feats(feats_fm, np.random.default_rng(seed), 0, 1, count, 0.02) != feats_fm)[:, 0].int()
            best = max(best, int((hit.diff(prepend=torch.tensor([0])) == 1).sum()))
        return best

    assert [pieces(count) for count in (0, 1, 3)] == [0, 1, 3]


def test_only_spec_augment_masks_the_dumped_features(data):
    plain, masked = AudioTextDataset(data), dataset(data, freq_masks=2, time_masks=2)
    assert not masked.waveform
    hit = masked[0].feats_fm != plain[0].feats_fm
    assert 0 < hit.float().mean() < 0.7 and plain.lengths() == masked.lengths()
    assert torch.equal(plain[0].feats_fm.mean(0).expand(102, -1)[hit], masked[0].feats_fm[hit])


# Off, and the same again


def test_off_is_bit_identical(data):
    plain = AudioTextDataset(data)
    for off in (dataset(data), dataset(data, reverb="simulated", reverb_prob=0.0, noise="nowhere", noise_prob=0.0)):
        assert not off.waveform and off.lengths() == plain.lengths()
        assert all(torch.equal(off[i].feats_fm, plain[i].feats_fm) and off[i][2:] == plain[i][2:] for i in range(3))
        assert all(torch.equal(off.samples(i), plain.samples(i)) for i in range(3))
    assert plain.samples(1).shape == (11200,) and plain.samples(1).dtype == torch.float32


def everything(tmp_path):
    noise = write_scp(tmp_path, "noise", {"a": hiss(RATE), "b": hiss(3 * RATE, 5)})
    return dict(speed=[0.9, 1.1], reverb="simulated", noise=noise, noise_prob=0.9, freq_masks=2, time_masks=2)


def test_seed_epoch_and_utterance_decide_and_nothing_else(data, tmp_path):
    conf = everything(tmp_path)
    first = dataset(data, **conf)
    one = [first[i].feats_fm for i in range(3)]
    again = dataset(data, **conf)
    torch.manual_seed(5), np.random.seed(5)
    other_order = {i: again[i].feats_fm for i in (2, 0, 1, 0)}
    assert all(torch.equal(one[i], other_order[i]) for i in range(3))
    again.epoch = 1
    next_epoch = again[0].feats_fm
    assert next_epoch.shape != one[0].shape or not torch.equal(next_epoch, one[0])
    again.epoch = 0
    assert torch.equal(again[0].feats_fm, one[0])
    other_seed = dataset(data, seed=2, **conf)[0].feats_fm
    assert other_seed.shape != one[0].shape or not torch.equal(other_seed, one[0])


def test_samples_are_what_the_features_are_made_of(data, tmp_path):
    waves = dataset(data, **(everything(tmp_path) | {"freq_masks": 0, "time_masks": 0}))
    for waves.epoch in (0, 3):
        assert torch.equal(WhisperLogMel(80)(waves.samples(2)), waves[2].feats_fm)
    assert not torch.equal(waves.samples(2)[:1000], AudioTextDataset(data).samples(2)[:1000])


def test_segments_are_cut_before_anything_is_changed(data):
    entry = json.loads(data.read_text().splitlines()[0]) | {"start": 0.25, "end": 0.75}
    data.write_text(json.dumps(entry) + "\n")
    assert dataset(data, speed=[0.8]).samples(0).shape == (10000,)


def test_training_killed_and_resumed_sees_the_same_augmented_data(data, tmp_path, tiny_config):
    from safetensors.torch import load_file

    from steermoe.bin.train import adapter_trainer
    from steermoe.model import SteerMoE

    tiny_config.train_conf.max_batch = 2  # 2 batches an epoch, 6 steps: 3 epochs

    def trainer(exp, conf):
        model = SteerMoE.from_config(tiny_config)
        return adapter_trainer(model, tiny_config, dataset(data, **conf), AudioTextDataset(data), tmp_path / exp, {"git": "test"})

    def adapter(exp):
        return load_file(tmp_path / exp / "checkpoints" / "last.safetensors")

    conf = everything(tmp_path)
    for exp, options in (("whole", conf), ("plain", {})):
        run = trainer(exp, options)
        run.run()
        assert run.train_set.epoch == 2
    killed = trainer("killed", conf)
    step = killed.optimizer_step

    def die_in_the_fourth(batches):
        if killed.step == 3:
            raise KeyboardInterrupt
        return step(batches)

    killed.optimizer_step = die_in_the_fourth
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    trainer("killed", conf).run()
    whole, resumed, plain = adapter("whole"), adapter("killed"), adapter("plain")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)


# The configuration


def test_keys_on_the_command_line():
    parser = Parser(prog="x")
    parser.add_argument("--config")
    words = ["--augment-conf.speed", "[0.9,1.0,1.1]", "--augment-conf.noise-snr", "[0, 15]", "--augment-conf.reverb", "simulated"]
    conf = parse_with_config(parser, words)[1].augment_conf
    assert (conf.speed, conf.noise_snr, conf.reverb, conf.freq_masks) == ([0.9, 1.0, 1.1], [0, 15], "simulated", 0)


def test_off_by_default():
    conf = load_config(None).augment_conf
    assert not Augment(conf, 1).waveform and (conf.freq_masks, conf.time_masks) == (0, 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("speed", "[0.9, fast]", r"\[0.9, 'fast'\] is not a list of factors from 0.5 to 2"),
        ("speed", "[90, 100, 110]", "from 0.5 to 2"),
        ("speed", "0.9", "0.9 is not a list"),
        ("reverb", "3", "3 is not a text"),
        ("reverb_prob", "1.5", "1.5 is not from 0 to 1"),
        ("noise", "[a]", "is not a text"),
        ("noise_prob", "-0.1", "-0.1 is not from 0 to 1"),
        ("noise_snr", "[20, 5]", "the lower one first"),
        ("noise_snr", "[5]", "two numbers of dB"),
        ("noise_snr", "[a, b]", "two numbers of dB"),
        ("freq_masks", "-1", "-1 is not 0 or more"),
        ("freq_masks", "two", "'two' is not a whole number"),
        ("freq_width", "0", "0 is not 1 or more"),
        ("time_masks", "-2", "-2 is not 0 or more"),
        ("time_width", "5", "5.0 is not over 0, at most 1"),
    ],
)
def test_bad_values(tmp_path, key, value, message):
    path = tmp_path / "train.yaml"
    path.write_text(f"augment_conf: {{{key}: {value}}}\n")
    with pytest.raises(UserError, match=f"train.yaml: augment_conf.{key}: .*{message}"):
        load_config(path)


def test_masks_as_wide_as_the_features_are_refused():
    with pytest.raises(UserError, match="augment_conf.freq_width: 27 of 20 bands"):
        Augment(AugmentConf(freq_masks=1), 1).feats(torch.zeros(50, 20), "u", 0)


@pytest.mark.parametrize("key", ["noise", "reverb"])
def test_recordings_that_cannot_be_used_are_known_before_training(tmp_path, key):
    def refused(path, message):
        with pytest.raises(UserError, match=f"^augment_conf.{key}: .*{message}"):
            Augment(AugmentConf(**{key: str(path)}), 1)

    refused("nowhere.scp", "nowhere.scp: no such file")
    refused("nowhere", "nowhere: no such data directory")
    scp = tmp_path / "wav.scp"
    scp.write_text("a cat a.wav |\n")
    refused(scp, "is a command")
    refused(tmp_path, "utt2spk: no such file")
    (tmp_path / "gone").mkdir()
    scp.write_text(f"a {tmp_path}/gone.wav\n")
    refused(scp, "gone.wav: no such audio file")
    scp.write_text("")
    refused(scp, "lists no audio")


def test_a_silent_room_is_refused(tmp_path):
    augment = Augment(AugmentConf(reverb=write_scp(tmp_path, "rir", {"a": np.zeros(100, np.float32)}), reverb_prob=1.0), 1)
    with pytest.raises(UserError, match="augment_conf.reverb: .*a.wav: is silent"):
        augment.samples(tone(), "u", 0)


def test_a_data_directory_with_segments_of_noise(tmp_path):
    write_scp(tmp_path, "wav", {"a": hiss(RATE)})
    (tmp_path / "utt2spk").write_text("n1 n1\nn2 n2\n")
    (tmp_path / "segments").write_text("n1 a 0 0.25\nn2 a 0.5 1\n")
    assert read_recordings(str(tmp_path), "noise") == [(f"{tmp_path}/a.wav", 0.0, 0.25), (f"{tmp_path}/a.wav", 0.5, 0.5)]
    (tmp_path / "segments").unlink()
    (tmp_path / "utt2spk").write_text("a a\n")
    assert read_recordings(str(tmp_path), "noise") == [(f"{tmp_path}/a.wav", 0.0, 1.0)]


@pytest.mark.parametrize(("wav", "message"), [(None, ":2: no 'wav'; remove the file"), ("sox a.wav - |", ":2: .*is a command")])
def test_utterances_without_an_audio_file_are_known_before_training(data, wav, message):
    lines = data.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"wav": wav})
    data.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="data.jsonl" + message):
        dataset(data, speed=[0.9])
    assert len(dataset(data, time_masks=1)) == 3


def test_features_alone_need_no_audio(tmp_path):
    masked = dataset(tiny.make_dataset(tmp_path, [50]), time_masks=1)
    assert masked[0].feats_fm.shape == (50, 80)


def test_samples_have_no_bands_to_mask(tmp_path):
    from steermoe.encoders.wav2vec2 import SampleRows

    class Extractor:
        do_normalize = False

    path = tiny.make_dataset(tmp_path, [50])
    frontend = SampleRows(Extractor(), 400)
    with pytest.raises(UserError, match="freq_masks: samples160 are samples"):
        AudioTextDataset(path, Augment(AugmentConf(freq_masks=1), 1), frontend)
    AudioTextDataset(path, Augment(AugmentConf(time_masks=1), 1), frontend)
