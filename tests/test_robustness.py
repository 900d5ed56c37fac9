"""The robustness command: what it decodes and does not decode again, its folders, tables, figures and plot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
from test_disturb import make_data, noise, tone
from test_whisper_baseline import ENGLISH, make_audio, make_table, write_tiktoken

from steermoe.bin.robustness import main
from steermoe.checkpoint import save_adapter
from steermoe.config import config_from_dict
from steermoe.decode import recognizers
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.score.robustness import figures, plot_snr, tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    """exp/tiny with an untrained adapter between a random LLM and a whole random Whisper that can spell."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("experiment")
    tiny.make_llm(folder / "llm")
    torch.manual_seed(5)
    sizes = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32)
    whisper = WhisperConfig(vocab_size=ENGLISH, d_model=16, decoder_ffn_dim=32, max_target_positions=12, **sizes)
    WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    (folder / "whisper" / "generation_config.json").unlink()
    write_tiktoken(folder / "whisper" / "vocab.tiktoken", make_table())
    tree = {"encoder_conf": {"model": str(folder / "whisper"), "dtype": "float32"}, "decode_conf": {"max_tokens": 4}}
    config = config_from_dict(tree | {"llm_conf": {"model": str(folder / "llm"), "dtype": "float32"}})
    save_adapter(folder / "exp/tiny/checkpoints/best.safetensors", SteerMoE.from_config(config), config, 7, {"git": "test"})
    return folder


@pytest.fixture()
def recipe(experiment, tmp_path, monkeypatch) -> Path:
    """A recipe's folder with four test utterances of two speakers, three other speakers, and two recorded sounds."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/tiny").mkdir()
    (tmp_path / "exp/tiny/checkpoints").symlink_to(experiment / "exp/tiny/checkpoints")
    (tmp_path / "data").mkdir()
    make_data(tmp_path / "data/test", {f"s{n}": [make_audio(n, 0.5 + n), make_audio(9 + n, 1.0)] for n in (1, 2)})
    make_data(tmp_path / "data/train", {f"t{n}": [tone(200 * n)] for n in (1, 2, 3)})
    (tmp_path / "sounds").mkdir()
    for seed in (1, 2):
        soundfile.write(tmp_path / f"sounds/{seed}.ogg", noise(seed), 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = "--exp exp/tiny --test-set test --noise sounds --snr 10 --tempo 0.8 --loudness -20 --clips 2".split()
SPEECH = ["clean", "babble_10dB", "sounds_10dB", "tempo_0.8", "loudness_-20dB"]
NOBODY = ["nobody_silence", "nobody_white", "nobody_pink", "nobody_sounds"]


def rows(text: str) -> list[list[str]]:
    return [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]


def conditions(err: str) -> list[str]:
    """Those that were decoded, `system: condition`."""
    return re.findall(r"=== (\w+)[^,]*, condition \d+ of \d+: (\S+)", err)


def test_every_condition_by_the_adapter_and_the_own_decoder(recipe, capsys):
    main(QUICK)
    out, err = capsys.readouterr()
    folder = recipe / "exp/tiny/robustness/test"
    assert out.strip() == (folder / "RESULTS.md").read_text().strip() and out.startswith("# Robustness of tiny on test\n")
    assert "seed 1" in out and "adapter of step 7" in out
    assert f"utils/robustness.sh {' '.join(QUICK)}" in out and "max_tokens: 4" in out and re.search(r"- git \w+", out)
    assert conditions(err) == [(system, name) for system in ("adapter", "own") for name in SPEECH + NOBODY]
    found = rows(out)
    assert [row[0] for row in found] == ["condition", "---", *SPEECH, "nobody speaks", "---", *NOBODY]
    heads = ("Err", "95 % interval", "loops")
    assert found[0][1:] == ["Snt", "words", *(f"{system}: {head}" for system in ("adapter", "own decoder") for head in heads)]
    assert all(row[1] == "4" for row in found[2:7]) and all(row[1] == "2" for row in found[9:])
    content = json.loads((folder / "robustness.json").read_text())
    assert (content["seed"], content["test_set"], content["config"]["decode_conf"]["max_tokens"]) == (1, "test", 4)
    assert {"git", "torch", "processor"} <= content["environment"].keys()
    for condition, row in zip(content["conditions"], found[2:7] + found[9:]):
        for system, first in (("adapter", 3), ("own decoder", 6 if condition["speech"] else 7)):
            figure = condition["results"][system]
            decoded = folder / system.replace(" ", "_") / condition["name"]
            assert (decoded / "hyp.trn").is_file() and json.loads((decoded / "decode.json").read_text())["environment"]["git"]
            if condition["speech"]:
                assert row[first] == f"{figure['rate']:.1f}" and row[first + 1] == f"{figure['low']:.1f} to {figure['high']:.1f}"
                assert (decoded / "result.txt").is_file()
            else:
                assert row[first] == f"{figure['per_clip']:.2f}" and row[first + 2] == f"{100 * figure['empty']:.0f} %"
    assert (folder / "wer_snr.png").read_bytes()[:4] == b"\x89PNG"
    # nothing is done again, and only what is new is done
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("hyp.trn")}
    main(QUICK)
    again = capsys.readouterr()
    assert conditions(again.err) == [] and rows(again.out) == found
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    main([*QUICK, "--tempo", "0.8", "1.25", "--own-score", "false"])
    more = capsys.readouterr()
    assert conditions(more.err) == [("adapter", "tempo_1.25")] and "own decoder" not in more.out


def test_only_what_follows_from_the_seed_is_made_again_with_another(recipe, capsys):
    words = [*QUICK, "--own-score", "false"]
    main(words)
    capsys.readouterr()
    main([*words, "--seed", "2"])
    made = [name for name in SPEECH + NOBODY if "dB" in name and "loud" not in name or name in NOBODY[:3]]
    assert [name for _, name in conditions(capsys.readouterr().err)] == made


def test_goes_on_inside_a_condition_and_ends_with_the_same_answers(recipe, capsys, monkeypatch):
    words = [*QUICK, "--own-score", "false", "--decode-conf.max-batch", "1"]
    main([*words, "--out", "whole"])
    count, call = 0, recognizers.Adapter.__call__

    def dies(self, *batch):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return call(self, *batch)

    monkeypatch.setattr(recognizers.Adapter, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--out", "killed"])
    assert [row[0] for row in rows((recipe / "killed/RESULTS.md").read_text())] == ["condition", "---", "clean"]
    assert not (recipe / "killed/wer_snr.png").exists()
    main([*words, "--out", "killed"])
    assert count == 7 + 2 + 4 * 3 + 2 * 4  # the rest of the second condition, three more of four, four of two
    for file in (recipe / "whole").rglob("text"):
        assert file.read_text() == (recipe / "killed" / file.relative_to(recipe / "whole")).read_text()


def test_features_and_answers_are_those_of_the_decoding_stage(recipe, experiment):
    """`clean` says what steermoe.bin.decode says of dumped features."""
    from steermoe.bin import decode, dump, prepare_text

    config = recipe / "train.yaml"
    config.write_text(f"encoder_conf: {{model: {experiment}/whisper}}\nllm_conf: {{model: {experiment}/llm}}\n")
    dump.main(["--config", str(config), "--data", "data/test", "--out", "dump", "--compression", "0"])
    prepare_text.main(["--config", str(config), "--data", "data/test", "--feats", "dump", "--out", "dump/data.jsonl"])
    decode.main(["--exp", "exp/tiny", "--data", "dump/data.jsonl", "--out", "decoded"])
    main([*QUICK, "--own-score", "false", "--babble", "none"])
    wanted = (recipe / "decoded/hyp.trn").read_text()
    assert (recipe / "exp/tiny/robustness/test/adapter/clean/hyp.trn").read_text() == wanted


def test_a_part_of_the_test_set_and_of_the_conditions(recipe, capsys):
    words = "--exp exp/tiny --test-set data/test --babble none --tempo --loudness --clips 1 --max-utts 2"
    main([*words.split(), "--own-score", "false"])
    found = rows(capsys.readouterr().out)
    assert [row[:2] for row in found] == [["condition", "Snt"], ["---", "---"], ["clean", "2"], *(
        [name, count] for name, count in [("nobody speaks", "clips"), ("---", "---"), *((name, "1") for name in NOBODY[:3])]
    )]  # fmt: skip


def test_the_encoder_alone_has_no_decoder(tmp_path, experiment, monkeypatch):
    from steermoe.config import load_config
    from steermoe.encoders.whisper_checkpoint import EMBED

    config = load_config(None, ["--encoder-conf.model", str(experiment / "whisper")])
    assert isinstance(recognizers.own_decoder(config, "en", "cpu"), recognizers.Whisper)

    class Alone:
        shapes: dict = {}

    monkeypatch.setattr(recognizers, "open_checkpoint", lambda path: Alone())
    assert EMBED not in Alone.shapes and recognizers.own_decoder(config, "en", "cpu") is None
    config = load_config(None, ["--encoder", "conformer", "--encoder-conf.model", str(tmp_path)])
    assert recognizers.own_decoder(config, "en", "cpu") is None


def test_a_conformer_that_the_recipe_made_has_its_ctc_head(tmp_path):
    from test_ctc import write_recogniser

    from steermoe.config import load_config

    write_recogniser(tmp_path)
    config = load_config(None, ["--encoder", "conformer", "--encoder-conf.model", str(tmp_path)])
    own = recognizers.own_decoder(config, "en", "cpu")
    waves = [make_audio(1, 1.5), make_audio(2, 0.5)]
    entries = [{"utt": "a", "duration": 1.5}, {"utt": "b", "duration": 0.5}]
    (batch,) = own.batches(entries)
    together = own(entries, waves)
    assert sorted(entry["utt"] for entry in batch) == sorted(together) == ["a", "b"]
    assert all(ended == "end" for _, ended in together.values())
    assert own(entries[1:], waves[1:])["b"] == together["b"]


# ---- figures, tables, plot


def write_decoded(folder: Path, texts: list[str], refs: list[str], **ended) -> Path:
    folder.mkdir()
    for name, lines in (("hyp", texts), ("ref", refs)):
        (folder / f"{name}.trn").write_text("".join(f"{line} (s-{index})\n" for index, line in enumerate(lines)))
    counts = {"end": 0, "length": 0, "repeat": 0} | ended
    (folder / "decode.json").write_text(json.dumps({"ended": counts, "audio_seconds": 12.5}))
    return folder


def test_figures_of_speech(tmp_path):
    folder = write_decoded(tmp_path / "a", ["a read hat", "Yes!"], ["a red hat", "yes"], repeat=2, length=1)
    found = figures(folder, True, "word", "english")
    assert (found["rate"], found["n"], found["sentences"], found["loops"], found["cut"]) == (25.0, 4, 2, 2, 1)
    assert found["low"] == 0.0 and (folder / "result.txt").is_file()


def test_figures_without_speech(tmp_path):
    folder = write_decoded(tmp_path / "a", ["", "Uh, you. ", "...", "thanks " * 6], [""] * 4)
    found = figures(folder, False, "word", "english")
    assert found == {"clips": 4, "seconds": 12.5, "per_clip": 7 / 4, "most": 6, "empty": 0.5, "loops": 1, "cut": 0}
    assert figures(folder, False, "char", "none")["most"] == 36


@pytest.mark.parametrize(
    ("text", "loops"),
    [("no no no no", 0), ("a" * 13, 1), ("I am sorry. " * 3 + "I am sor", 0), ("ha. " * 6, 1), ("and the " * 7 + "end", 0)],
)
def test_what_a_loop_is(tmp_path, text, loops):
    assert figures(write_decoded(tmp_path / "a", [text], [""]), False, "word", "none")["loops"] == loops


def row(name: str, speech: bool = True, noise: str = "", snr: float | None = None, **results) -> dict:
    return {"name": name, "speech": speech, "noise": noise, "snr": snr, "results": results}


RATE = {"rate": 12.34, "low": 10.0, "high": 14.96, "n": 50, "sentences": 5, "loops": 1}
CLIP = {"clips": 4, "seconds": 12.5, "per_clip": 0.256, "most": 3, "empty": 0.75, "loops": 0}


def test_tables_by_hand():
    text = tables(["a", "b"], [row("clean", a=RATE), row("quiet", False, a=CLIP, b=CLIP), row("later")], "char")
    assert text == (
        "|condition|Snt|characters|a: Err|a: 95 % interval|a: loops|b: Err|b: 95 % interval|b: loops|\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "|clean|5|50|12.3|10.0 to 15.0|1||||\n\n"
        "|nobody speaks|clips|s|a: characters per clip|a: most|a: empty|a: loops|"
        "b: characters per clip|b: most|b: empty|b: loops|\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
        "|quiet|4|12|0.26|3|75 %|0|0.26|3|75 %|0|\n"
    )
    assert tables(["a"], [row("clean")], "word") == ""


def test_the_plot_has_a_line_for_each_system_and_noise(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines, errorbar = [], Axes.errorbar

    def kept(self, places, rates, errors, **settings):
        lines.append((settings["label"], list(places), rates, errors))
        return errorbar(self, places, rates, errors, **settings)

    monkeypatch.setattr(Axes, "errorbar", kept)
    loud = RATE | {"rate": 80.0, "low": 75.0, "high": 90.0}
    found = [row("clean", a=RATE, b=RATE)]
    found += [row("x_0dB", noise="x", snr=0.0, a=loud), row("x_10dB", noise="x", snr=10.0, a=RATE)]
    plot_snr(["a", "b"], found, "word", tmp_path / "plots/wer.png")
    label, places, rates, errors = lines[0]
    assert (label, places, rates) == ("a, x", [0, 1, 2], [12.34, 12.34, 80.0])
    assert np.allclose(errors, [[2.34, 2.34, 5.0], [2.62, 2.62, 10.0]]) and lines[1][:2] == ("b, x", [0])
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["wer.png"]


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--exp", "nowhere"], "nowhere: no trained adapter here"),
        (["--test-set", "tset"], "tset: no such data directory"),
        (["--babble", "data/nobody"], "data/nobody: no such data directory"),
        (["--babble", "data/test"], "data/test: 0 speakers who are not in the test set"),
        (["--noise", "nowhere"], "--noise: nowhere: no such data directory"),
        (["--noise", "babble=sounds"], "--noise babble: write NAME=PATH"),
        (["--noise", "a b=sounds"], "--noise a b: write NAME=PATH"),
        (["--noise", "sounds", "sounds=sounds"], "--noise sounds: write NAME=PATH, .* another one for each"),
        (["--tempo", "3"], "--tempo 3: from 0.5 to 2"),
        (["--clips", "0"], "--clips 0: 1 or more"),
        (["--max-utts", "-1"], "--max-utts -1: 0 or more"),
        (["--seed", "-1"], "--seed -1: 0 or more"),
        (["--decode-conf.baem", "4"], "unknown key decode_conf.baem .did you mean 'beam'"),
        (["--train-conf.seed", "4"], "--train_conf.seed: unknown option"),
        (["--exp", "exp/tiny/checkpoints/best.safetensors"], "not an experiment folder, where the results would go; give --out"),
        (["--ngpu", "3"], "--ngpu 3"),
    ],
)
def test_mistakes_are_known_before_anything_is_decoded(recipe, words, message):
    with pytest.raises(UserError, match=message):
        main([*QUICK, *words])
    assert not (recipe / "exp/tiny/robustness").exists()


def test_the_script_runs_it_in_the_recipe(recipe):
    script = ["bash", str(ROOT / "utils/robustness.sh"), "--exp", "nowhere", "--test-set", "test"]
    done = subprocess.run(script, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "error: nowhere: no trained adapter here" in done.stderr
