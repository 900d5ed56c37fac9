"""The ablation command with a stand-in for run.sh: what is run and not run again, what is picked, what the table says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_pipeline import Recipe

from steermoe.bin.ablation import Ablation, Study, Trial, main
from steermoe.config import load_as, load_config
from steermoe.errors import UserError
from steermoe.registry import resolve
from steermoe.score import score
from steermoe.train.trainer import NONFINITE_FIX

ROOT = Path(__file__).resolve().parents[1]
RUN_SH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> calls
declare -A at
while [ $# -gt 1 ]; do at[${1#--}]=$2; shift 2; done
name=$(basename "${at[train-config]}" .yaml)
exp=exp/${name}_${at[tag]}
mkdir -p "$exp/log" "$exp/checkpoints"
[ ! -e hang ] || { echo $$ > hanging; exec sleep 60; }
if [ -e fail ] && [[ $exp =~ $(cat fail) ]]; then
  printf '# Started at noon\\n%s\\n' "$(cat why)" >> "$exp/log/train.log"
  exit 1
fi
case ${at[optim-conf.lr.projector]} in 0.0001) loss=3 ;; 0.001) loss=2.5 ;; *) loss=1.5 ;; esac
printf '{"step": 1, "seconds": 60}\\n{"step": 2, "seconds": 30, "dev_loss": %s}\\n' "$loss" > "$exp/log/train.jsonl"
cp "weights/$name.safetensors" "$exp/checkpoints/best.safetensors"
if [ "${at[stop-stage]}" = 5 ]; then cp -r "decoded/$name" "$exp/decode_test_default"; fi
"""
CONF = {
    "reference": "eight",
    "steps": 500,
    "tune_steps": 100,
    "rates": [0.1, 1, 10],
    "seeds": [1, 2],
    "variants": {"none": {"steering": "none"}, "eight": None, "wide": {"frames": "stack", "frames_conf": {"hidden": 7}}},
}
BASE = {
    "projector": "token",
    "projector_conf": {"frames_conf": {"pool": "max", "kernel": 2}},
    "objective": "joint",
    "objective_conf": {"ctc_steps": 800},
    "optim_conf": {"lr": {"projector": 0.001, "steering": 0.01, "router": 0.001}, "warmup_steps": 50},
    "train_conf": {"max_steps": 1000},
}


@pytest.fixture()
def recipe(tmp_path, monkeypatch) -> Path:
    """A recipe's folder; `eight` has every word right, `none` every second one, `wide` differs in one word of 40."""
    write(tmp_path / "conf/ablation.yaml", dumped(CONF))
    write(tmp_path / "conf/train_whisper_ctc.yaml", yaml.safe_dump(BASE))
    write(tmp_path / "run.sh", RUN_SH).chmod(0o755)
    words = [[f"word{place}" for place in range(4)] for _ in range(10)]
    for size, name in enumerate(CONF["variants"], 3):
        spoken = [list(line) for line in words]
        for line in spoken[: {"none": 10, "eight": 0, "wide": 1}[name]]:
            line[::2] = ["oh"] * 2 if name == "none" else ["oh", line[2]]
        folder = tmp_path / "decoded" / name
        for file, lines in (("ref.trn", words), ("hyp.trn", spoken)):
            write(folder / file, "".join(f"{' '.join(line)} (spk-utt{index})\n" for index, line in enumerate(lines)))
        score(folder / "ref.trn", folder / "hyp.trn", out_dir=folder)
        (tmp_path / "weights").mkdir(exist_ok=True)
        tensors = {"projector.a": torch.zeros(size, 10), "steering.b": torch.zeros(1)}
        save_file(tensors, tmp_path / "weights" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *words: None)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dumped(conf: dict) -> str:
    return yaml.safe_dump(conf, sort_keys=False)


def calls(recipe: Path) -> list[str]:
    """The calls of run.sh since the last question."""
    file = recipe / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.write_text("")
    return lines


def tags(recipe: Path) -> list[str]:
    return [re.search(r"([^/]+)\.yaml --tag ablation_(\S+)", line).expand(r"\1 \2") for line in calls(recipe)]


def table(text: str) -> list[list[str]]:
    return [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")][2:]


def test_every_variant_is_tuned_trained_with_each_seed_and_compared(recipe, capfd):
    main([])
    first = calls(recipe)
    assert len(first) == 3 * (3 + 2)
    shared = "--stage 4 --stop-stage {} --own-score false --train-config exp/ablation/none.yaml --tag ablation_{} --seed {} "
    tune = "--train-conf.max-steps 100 --train-conf.patience 0 --optim-conf.warmup-steps 5 --objective-conf.ctc-steps 80 "
    rates = "--optim-conf.lr.projector {} --optim-conf.lr.steering {} --optim-conf.lr.router {}"
    tune += "--train-conf.valid-steps 100 "
    assert first[0] == shared.format(4, "tune100_lr0.1_seed1", 1) + tune + rates.format(0.0001, 0.001, 0.0001)
    long = "--train-conf.max-steps 500 --train-conf.patience 0 --optim-conf.warmup-steps 25 --objective-conf.ctc-steps 400 "
    assert first[4] == shared.format(5, "steps500_lr10_seed2", 2) + long + rates.format(0.01, 0.1, 0.01)
    printed = capfd.readouterr().out
    assert printed.strip() == (recipe / "exp/ablation/RESULTS.md").read_text().strip()
    rows = table(printed)
    assert [row[:7] for row in rows] == [
        [name, str(parameters), "x 10", str(seed), "1.5", "1.500", "test_default"]
        for name, parameters in (("none", 31), ("eight", 41), ("wide", 51))
        for seed in (1, 2)
    ]
    none, eight, wide = rows[::2]
    assert none[7] == "50.00 [50.00, 50.00]" and eight[7] == "0.00 [0.00, 0.00]" and wide[7].startswith("2.50 [0.00, ")
    assert none[8] == "+50.00 [+50.00, +50.00]" and eight[8:] == ["", ""] and wide[8].startswith("+2.50 [+0.00, ")
    assert wide[9].startswith("no real difference, p = ")
    assert "100 steps" in printed and "500 steps" in printed and "0.1, 1, 10" in printed


def test_what_is_finished_is_not_run_again(recipe):
    main([])
    calls(recipe)
    before = (recipe / "exp/ablation/RESULTS.md").read_text()
    main([])
    assert calls(recipe) == [] and (recipe / "exp/ablation/RESULTS.md").read_text() == before
    main(["--seeds", "1", "2", "3", "--variants", "wide"])
    assert tags(recipe) == ["wide steps500_lr10_seed3"]
    main(["--steps", "600", "--variants", "wide"])
    assert tags(recipe) == ["wide steps600_lr10_seed1", "wide steps600_lr10_seed2"]
    write(recipe / "conf/train_whisper_ctc.yaml", yaml.safe_dump(BASE | {"llm_conf": {"model": "other"}}))
    main(["--variants", "none", "--dry-run", "true"])
    main(["--variants", "none"])
    assert len(tags(recipe)) == 5


def test_goes_on_where_it_was_stopped_and_the_table_has_what_is_there(recipe, capfd):
    write(recipe / "fail", "eight.*steps500.*seed2")
    write(recipe / "why", "no disk")
    with pytest.raises(UserError, match=r"(?s)failed, see above and exp/eight\S*/log/train.log: ./run.sh --stage 4"):
        main([])
    assert len(calls(recipe)) == 5 + 5
    (recipe / "fail").unlink()
    main(["--variants", "eight"])
    assert tags(recipe) == ["eight steps500_lr10_seed2"]
    rows = table(capfd.readouterr().out)
    assert [(row[0], row[3]) for row in rows] == [("none", "1"), ("none", "2"), ("eight", "1"), ("eight", "2")]


def test_without_the_reference_nothing_is_compared(recipe, capfd):
    main(["--variants", "wide"])
    assert [row[8:] for row in table(capfd.readouterr().out)] == [["", ""]] * 2


def test_a_learning_rate_that_diverges_is_not_taken_and_not_tried_again(recipe):
    write(recipe / "fail", "tune100_lr10_")
    write(recipe / "why", f"steermoe train: error: step 7: the dev loss is nan; {NONFINITE_FIX}")
    main(["--variants", "none"])
    assert tags(recipe)[-2:] == ["none steps500_lr1_seed1", "none steps500_lr1_seed2"]
    main(["--variants", "none"])
    assert tags(recipe) == []


def test_an_older_divergence_does_not_excuse_another_failure(recipe):
    write(recipe / "fail", "tune100_lr10_")
    write(recipe / "why", NONFINITE_FIX)
    write(recipe / "exp/none_ablation_tune100_lr10_seed1/log/train.log", f"# Started at ten\n{NONFINITE_FIX}\n")
    write(recipe / "why", "no disk")
    with pytest.raises(UserError, match="failed"):
        main(["--variants", "none"])


def test_no_learning_rate_that_works(recipe):
    write(recipe / "fail", "tune")
    write(recipe / "why", NONFINITE_FIX)
    with pytest.raises(UserError, match="eight: no learning rate gives a finite dev loss; add a lower one to rates"):
        main(["--variants", "eight"])


def test_a_dry_run_prints_the_commands_and_touches_nothing(recipe, capfd):
    before = sorted(recipe.rglob("*"))
    main(["--dry-run", "true", "--variants", "none", "--tune-steps", "50", "--name", "abl", "--", "--ngpu", "1"])
    lines = capfd.readouterr().out.splitlines()
    assert sorted(recipe.rglob("*")) == before and len(lines) == 5
    assert all(line.startswith("./run.sh ") and line.endswith(" --ngpu 1") and "exp/abl/none.yaml" in line for line in lines)
    assert "--tag abl_tune50_lr0.1_seed1 " in lines[0] and "--tag abl_steps500_lrBEST_seed2 " in lines[4]


def test_variants_over_the_training_configuration(recipe):
    study = Study(load_as(Ablation, "conf/ablation.yaml"), load_config("conf/train_whisper_ctc.yaml"), "x", [], "conf")
    none, eight, wide = study.configs.values()
    assert none.steering == "none" and none.steering_conf == {} and none.projector_conf == eight.projector_conf
    assert eight.projector_conf["frames_conf"] == {"pool": "max", "kernel": 2}
    assert wide.projector_conf["frames"] == "stack" and wide.projector_conf["frames_conf"] == {"kernel": 2, "hidden": 7}
    assert wide.steering_conf == eight.steering_conf and wide.projector == "token"


def test_the_driver_understands_a_command_and_names_the_experiment_as_expected(recipe, monkeypatch):
    study = Study(load_as(Ablation, "conf/ablation.yaml"), load_config("conf/train_whisper_ctc.yaml"), "abl", [], "conf")
    real, trial = Recipe(recipe / "repository"), Trial("none", "steps", 500, 0.01, 2)
    monkeypatch.chdir(real.folder)
    study.configs["none"].save(study.config_file("none"))
    command = study.command(trial)
    status, _, err = real.run(*command[1:])
    assert status == 0, err
    assert (study.exp(trial) / ".train.done").exists() and (study.exp(trial) / "decode_test_default/result.txt").exists()
    (train,) = [line.split() for line in real.calls() if line.startswith("train ")]
    overrides = train[train.index("--train-conf.seed") : train.index("--train")]
    config = load_config(study.config_file("none"), overrides)
    assert config.optim_conf.lr == {"projector": 1e-5, "steering": 1e-4, "router": 1e-5} and config.optim_conf.warmup_steps == 25
    assert (config.train_conf.max_steps, config.train_conf.seed, config.objective_conf["ctc_steps"]) == (500, 2, 400)


def test_frames_are_the_projector_where_there_is_no_token_projector(recipe):
    write(recipe / "conf/train_whisper_ctc.yaml", yaml.safe_dump({"projector_conf": {"kernel": 2, "pool": "max"}}))
    study = Study(load_as(Ablation, "conf/ablation.yaml"), load_config("conf/train_whisper_ctc.yaml"), "x", [], "conf")
    assert study.configs["wide"].projector == "stack" and study.configs["wide"].projector_conf == {"kernel": 2, "hidden": 7}
    assert "objective-conf" not in " ".join(study.command(study.tuning("wide")[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "eigth"}, "did you mean 'eight'"),
        ({"variants": {}}, "variants: none"),
        ({"variants": {"eight": {"stering": "none"}}}, "eight: 'stering' is not a key of a variant .did you mean 'steering'"),
        ({"variants": {"eight": {"steering_conf": {"num_expert": 2}}}}, "did you mean 'num_experts'"),
        ({"variants": {"eight": {"steering_conf": {"top_k": 9}}}}, "eight: steering_conf.top_k: 9"),
        ({"variants": {"eight": {"frames_conf": {"kernle": 2}}}}, "eight: .*kernle"),
        ({"variants": {"eight": {"frames_conf": {"kernel": "two"}}}}, "eight: "),
        ({"variants": {"eight": {}, "a/b": {}}}, "a/b: a variant's name becomes a folder's"),
        ({"variants": {"eight": "none"}}, "eight: 'none' is not"),
        ({"rates": [0]}, "rates: "),
        ({"rates": []}, "rates: "),
        ({"seeds": []}, "seeds: "),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"tune_steps": 0}, "tune_steps: 0 is below 1"),
        ({"sets": 1}, "unknown key sets"),
    ],
)
def test_mistakes_are_known_before_anything_runs(recipe, change, message):
    write(recipe / "conf/ablation.yaml", dumped(CONF | change))
    with pytest.raises(UserError, match=message):
        main([])
    assert calls(recipe) == []


def test_wrong_options(recipe):
    with pytest.raises(UserError, match="did you mean 'none'"):
        main(["--variants", "nnone"])
    (recipe / "run.sh").unlink()
    with pytest.raises(UserError, match="no run.sh here"):
        main([])


def test_a_signal_stops_the_run_in_progress(recipe):
    write(recipe / "hang", "")
    command = ["bash", str(ROOT / "utils/ablation.sh"), "--variants", "none"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHON": sys.executable}, stderr=subprocess.DEVNULL)
    wait_until(lambda: (recipe / "hanging").is_file() and (recipe / "hanging").read_text().strip(), 120)
    child = int((recipe / "hanging").read_text())
    process.terminate()
    assert process.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def wait_until(ready, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_librispeech_compares_what_it_says_at_one_frame_rate_and_like_sizes():
    folder = ROOT / "egs/librispeech/conf"
    study = Study(load_as(Ablation, folder / "ablation.yaml"), load_config(folder / "train_whisper_ctc.yaml"), "x", [], "conf")
    sizes = {}
    for variant, config in study.configs.items():
        with torch.device("meta"):
            parts = resolve("steering", config.steering)(4, 384, **config.steering_conf), resolve("projector", config.projector)(
                384, 576, **config.projector_conf
            )
        sizes[variant] = sum(p.numel() for part in parts for p in part.parameters())
        assert parts[1].frames.kernel == 2
    wanted = "static stack steermoe-2 steermoe-4 steermoe-8 steermoe-16 shared-router top-k moe-adapter dense-adapter"
    assert list(sizes) == [*wanted.split(), "steermoe-8+moe-adapter"]
    assert sizes["moe-adapter"] - sizes["dense-adapter"] == 384 * 8  # the router
    assert abs(sizes["stack"] / sizes["moe-adapter"] - 1) < 0.05
    assert sizes["top-k"] == sizes["steermoe-8"] > sizes["shared-router"] > sizes["static"]
