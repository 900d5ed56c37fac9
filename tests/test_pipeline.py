"""utils/pipeline.sh: options, stages, what is missing made first, overrides, failures and signals. The verbs are stand-ins
(fake_python.sh), so each run takes about a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = """stage stop-stage encoder train-config preset variant init decode-config tag encoder-model llm seed corpus test-sets
train-sets dev-sets own-score lang nj decode-nj ngpu num-processes cmd-backend backfill allow-pipes dry-run verbose""".split()

RUN_SH = """#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../../utils/pipeline.sh
about="a corpus for tests"
downloaded=downloads/mini
nj=2
pipeline "$@"
"""
DATA_PREP = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--corpus")
parser.add_argument("--out")
options = parser.parse_args()
assert (pathlib.Path(options.corpus) / "sound").is_file()
for name in ("train", "dev", "test", "other"):
    folder = pathlib.Path(options.out) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("wav.scp", "text"):
        (folder / file).write_text("")
"""


class Recipe:
    """A recipe in a repository of its own; `run` gives (status, stdout, stderr)."""

    def __init__(self, folder: Path):
        self.root, self.folder = folder, folder / "egs" / "mini"
        shutil.copytree(ROOT / "utils", folder / "utils")
        for name, text in {
            "run.sh": RUN_SH,
            "local/download.sh": 'mkdir -p "$1/mini" && touch "$1/mini/sound"\n',
            "local/data_prep.py": DATA_PREP,
            "conf/train_whisper.yaml": "encoder: whisper\n",
            "conf/train_conformer.yaml": "encoder: conformer\n",
            "conf/decode_beam.yaml": "beam: 3\nmax_tokens: 9\n",
        }.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        (folder / "tools").mkdir()
        (folder / "tools" / "setup.sh").write_text('echo "$PYTHON"\n')
        python = str(ROOT / "tests" / "fake_python.sh")
        self.environment = os.environ | {"PYTHON": python, "REAL_PYTHON": sys.executable, "FAKE": str(folder)}

    def start(self, *options: str, script: str = "run.sh", **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", script, *options], cwd=self.folder, env=self.environment | environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *options: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*options, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """The verbs called since the last question, with their options."""
        file = self.root / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return lines

    def verbs(self) -> list[str]:
        """The verbs that did work, each once in a row."""
        names = [line.split()[0] for line in self.calls() if "--print-name" not in line and not line.startswith("fetch")]
        return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(tmp_path / "a folder with blanks")


def stages(err: str) -> list[int]:
    return [int(number) for number in re.findall(r"^=== stage (-?\d+): ", err, re.M)]


def test_help_lists_every_option_with_its_default_and_the_stages(recipe):
    status, out, _ = recipe.run("--help")
    assert status == 0 and "a corpus for tests" in out
    assert re.findall(r"^  --([a-z-]+) ", out, re.M) == OPTIONS
    assert re.search(r"--nj .*\n +\(default: 2\)", out) and re.search(r"--backfill .*\n +\(default: true\)", out)
    assert re.findall(r"^ +(-?\d)  (\w+) ", out, re.M)[0] == ("-1", "download") and " 6  pack " in out
    assert recipe.calls() == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stge", "1"], "did you mean --stage?"),
        (["--zzzzzz", "1"], "unknown option --zzzzzz"),
        (["--backfill", "yes"], "--backfill must be true or false, not 'yes'"),
        (["--nj=3"], "write the value as a word of its own: --nj 3"),
        (["--stage"], "--stage needs a value"),
        (["--tag", "--nj", "2"], "--tag needs a value"),
        (["--train-conf.seed"], "--train-conf.seed needs a value"),
        (["--stage", "trian"], "did you mean train?"),
        (["--stage", "7"], "stages are -1 to 6"),
        (["--stage", "5", "--stop-stage", "4"], "comes after"),
        (["--nj", "0"], "--nj 0: a whole number from 1 up"),
        (["--decode-nj", "x"], "--decode-nj x: a whole number from 1 up"),
        (["--ngpu", "x"], "--ngpu x"),
        (["--num-processes", "0"], "--num-processes 0"),
        (["--encoder", "confromer"], "conf/train_conformer.yaml conf/train_whisper.yaml"),
        (["--train-config", "conf/x.yaml"], "--train-config conf/x.yaml: no such file"),
        (["--corpus", "/no/such/folder"], "no such folder"),
        (["--cmd-backend", "pbs"], "local or slurm"),
        (["stage", "5"], "unexpected word 'stage'"),
        (["-stage", "5"], "unknown option -stage"),
        (["--path", "x"], "unknown option --path"),
    ],
)
def test_bad_options_are_one_clear_message(recipe, options, message):
    status, out, err = recipe.run(*options)
    assert status == 1 and out == "" and message in err
    assert len(err.strip().splitlines()) == 1
    assert recipe.calls() == []


def test_a_whole_run_from_nothing_and_again(recipe):
    status, out, err = recipe.run()
    assert status == 0, err
    assert stages(err) == [-1, 0, 1, 2, 3, 4, 5]
    order = ["data_dir", "dump", "prepare_text", "prepare_model", "train", "decode", "score", "whisper", "score", "results"]
    assert recipe.verbs() == order
    assert out.count("| SPKR    | # Snt # Wrd |") == out.count("| Sum/Avg |") == 2 and "raw" not in out
    assert "exp/whisper/decode_test_default/result.txt" in out and "exp/own_whisper-tiny.en/decode_test/result.txt" in out
    assert "report: exp/whisper/RESULTS.md" in out and "steermoe.bin.transcribe --model exp/whisper FILE.wav" in out
    status, again, err = recipe.run()
    assert (status, again) == (0, out)


def said(out: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the end of a run says: {what was made: [where, …]}, {what to do next: how}."""
    made, following = out.partition("\nmade:\n")[2].split("next:\n")
    where: dict[str, list[str]] = {}
    for line in made.splitlines():
        what, place = line.strip().split(": ", 1)
        where.setdefault(what, []).append(place)
    return where, dict(line.strip().split(": ", 1) for line in following.splitlines())


def test_the_end_says_what_was_made_where_it_is_and_what_to_do_next(recipe):
    made, following = said(recipe.run("--stop-stage", "0", "--seed", "3")[1])
    assert made == {"corpus": ["downloads/mini"], "data": [f"data/{name}, 0 utterances" for name in ("train", "dev", "test")]}
    assert following == {"go on": "./run.sh --seed 3 --stage features"}
    made, following = said(recipe.run("--stage", "1", "--stop-stage", "1")[1])
    assert made == {"features": [f"dump/whisper_feats/{name}/feats.scp" for name in ("train", "dev", "test")]}
    made, following = said(recipe.run("--stage", "2", "--stop-stage", "2")[1])
    listed = [f"dump/whisper_feats/{name}/data.jsonl, 1 utterances" for name in ("train", "dev", "test")]
    assert made == {"features and text": listed}
    assert following["in another recipe's training"] == "--train-sets 'train ../mini/dump/whisper_feats/train/data.jsonl'"
    status, out, err = recipe.run("--stage", "3", "--tag", "new one")
    made, following = said(out)
    assert [*made] == ["parameters and memory", "adapter", "to look at", "report"], err
    assert following["to hand it on"] == "./run.sh --tag new\\ one --stage pack"
    assert following["your own recordings"].endswith("-m steermoe.bin.transcribe --model exp/whisper_new one FILE.wav")
    packed, following = said(recipe.run("--stage", "6", "--tag", "new one")[1])
    assert [*packed] == ["package"] and "--push-to-hub USER/NAME" in following["for everybody"]
    places = re.findall(r"exp/whisper_new one/[\w./]*\w", str([*made.values(), *packed.values()]))
    assert len(places) == 7 and all((recipe.folder / place).exists() for place in places)


def test_the_end_of_a_recipe_of_questions(recipe):
    made, following = said(recipe.run("--decode-conf.unit", "answer", "--own-score", "false")[1])
    assert made["to look at"] == ["exp/whisper/decode_test_unitanswer/result.txt"]
    assert following["your own recordings"].endswith('-m steermoe.bin.chat --model exp/whisper "@FILE.wav QUESTION"')
    following = said(recipe.run("--stage", "6")[1])[1]
    assert '.chat --model package.zip "@FILE.wav QUESTION"' in following["on another machine"]


def test_a_failed_run_says_no_such_thing(recipe):
    status, out, _ = recipe.run(FAKE_FAIL="decode")
    assert status != 0 and out == ""


def test_the_end_of_every_recipe_is_the_driver_s(tmp_path):
    """Nothing comes after `pipeline "$@"`, so the summary is the last that each of them prints."""
    recipes = [path.read_text() for path in (ROOT / "egs").glob("*/run.sh")]
    with_driver = [text for text in recipes if ". ../../utils/pipeline.sh\n" in text]
    assert len(with_driver) >= 10 and all(text.endswith('\npipeline "$@"\n') for text in with_driver)


@pytest.mark.parametrize("first, last, expected", [("data", "1", [0, 1]), ("2", "text", [2]), ("pack", None, [6])])
def test_stages_by_number_and_name(recipe, first, last, expected):
    assert recipe.run()[0] == 0
    status, _, err = recipe.run("--stage", first, *(["--stop-stage", last] if last else []))
    assert status == 0 and stages(err) == expected


def test_data_stages_need_no_models(recipe):
    status, _, err = recipe.run("--stop-stage", "0", FAKE_FAIL="fetch")
    assert status == 0 and stages(err) == [-1, 0] and recipe.verbs() == ["data_dir"]


def test_models_that_cannot_be_had_are_known_before_any_work(recipe):
    status, _, err = recipe.run(FAKE_FAIL="fetch")
    assert status != 0 and stages(err) == [] and "bad luck" in err and not (recipe.folder / "downloads").exists()


def test_missing_inputs_are_made_first(recipe):
    status, _, err = recipe.run("--stage", "5")
    assert status == 0, err
    assert sorted(stages(err)) == [-1, 0, 1, 2, 3, 4, 5] and stages(err)[0] == 5
    assert "exp/whisper/.train.done is missing: running stage 4 (train) first" in err
    recipe.calls()
    status, _, err = recipe.run("--stage", "decode", "--encoder", "conformer")
    assert status == 0, err
    assert sorted(stages(err)) == [1, 2, 3, 4, 5]
    verbs = recipe.verbs()
    assert verbs == ["dump", "prepare_text", "prepare_model", "train", "decode", "score", "results"]
    assert (recipe.folder / "dump/conformer_feats/train/feats.scp").exists() and (recipe.folder / "exp/conformer").is_dir()


def test_without_backfill_the_missing_file_and_the_command_are_named(recipe):
    status, _, err = recipe.run("--stage", "5", "--backfill", "false")
    assert status == 1 and "exp/whisper/.train.done is missing" in err
    assert "./run.sh --stage train --stop-stage train" in err and recipe.verbs() == []


def test_overrides_reach_the_right_verbs_and_name_the_folders(recipe):
    status, _, err = recipe.run("--train-conf.max-steps", "100", "--decode-conf.beam", "4", "--llm", "models/Tiny", "--seed", "3")
    assert status == 0, err
    model = "--llm-conf.model models/Tiny --train-conf.seed 3 --train-conf.max-steps 100"
    calls = recipe.calls()
    for verb in ("fetch", "dump", "prepare_text", "prepare_model", "train"):
        mine = [line for line in calls if line.startswith(verb) and "--print-name" not in line]
        assert mine and all(model in line and "beam" not in line for line in mine), verb
    (decode,) = [line for line in calls if line.startswith("decode")]
    assert decode.endswith("--decode-conf.beam 4") and "max-steps" not in decode
    checked = [line for line in calls if "--print-name" in line]
    assert checked and "--decode-conf.beam 4" in checked[0]  # a wrong key is found before training, not after
    out = recipe.folder / "exp/whisper_Tiny_seed3_max_steps100/decode_test_beam4"
    assert out.is_dir()


def test_a_preset_names_the_experiment_and_reaches_every_verb(recipe):
    (recipe.root / "steermoe").symlink_to(ROOT / "steermoe")
    status, _, err = recipe.run("--preset", "C3B", "--variant", "authors_code", "--seed", "3")
    assert status == 0, err
    mine = "--config conf/train_whisper.yaml --preset C3B --variant authors_code --train-conf.seed 3"
    calls = [line for line in recipe.calls() if line.split()[0] in ("fetch", "dump", "prepare_text", "prepare_model", "train")]
    assert calls and all(mine in line for line in calls)
    assert (recipe.folder / "exp/C3B_authors_code_seed3/RESULTS.md").exists()
    assert not list(recipe.folder.glob("exp/own*"))  # the preset's encoder, not the file's, has no decoder of its own


def test_an_init_names_the_experiment_and_reaches_every_verb(recipe):
    status, _, err = recipe.run("--init", "../other/exp/best/", "--seed", "3", "--own-score", "false")
    assert status == 0, err
    mine = "--config conf/train_whisper.yaml --init ../other/exp/best/ --train-conf.seed 3"
    calls = recipe.calls()
    configured = [line for line in calls if line.split()[0] in ("fetch", "dump", "prepare_text", "prepare_model", "train")]
    assert configured and all(mine in line for line in configured)
    assert any(line.startswith("results ") and "--about a corpus for tests" in line for line in calls)
    exp = recipe.folder / "exp/whisper_init_best_seed3"
    assert (exp / "RESULTS.md").exists() and "--init ../other/exp/best/ --seed 3" in (exp / "run.sh").read_text()
    assert recipe.run("--init", "pretrained", "--tag", "two", "--stage", "3", "--stop-stage", "3")[0] == 0
    assert (recipe.folder / "exp/whisper_init_pretrained_two/model_info.txt").exists()


def test_a_dry_run_prints_the_table_and_touches_nothing(recipe):
    before = sorted(recipe.folder.rglob("*"))
    status, out, err = recipe.run("--preset", "W7B", "--dry-run", "true", "--decode-conf.beam", "4", "--stage", "4")
    assert (status, out, err) == (0, "a table\n", "") and sorted(recipe.folder.rglob("*")) == before
    (call,) = recipe.calls()
    assert call == "prepare_model --config conf/train_whisper.yaml --preset W7B --variant paper --decode-conf.beam 4 --dry-run true"


def test_training_on_several_gpus_has_a_process_on_each_and_decoding_takes_one(recipe):
    assert recipe.run("--ngpu", "4")[0] == 0
    calls = recipe.calls()
    start = calls.index("torchrun --standalone --nproc-per-node 4")
    assert calls[start + 1].startswith("train ") and calls[start + 1].endswith(" --ngpu 1")
    assert [line.split(" --ngpu ")[1] for line in calls if line.startswith("decode ")] == ["1"]
    assert recipe.run("--num-processes", "3", "--tag", "cpu", "--stage", "4", "--stop-stage", "4")[0] == 0
    calls = recipe.calls()
    start = calls.index("torchrun --standalone --nproc-per-node 3")
    assert calls[start + 1].startswith("train ") and calls[start + 1].endswith(" --ngpu 0")


def pretrainable(recipe) -> None:
    """Gives the recipe a Conformer of its own."""
    conf = recipe.folder / "conf"
    (conf / "train_conformer.yaml").write_text("encoder: conformer\nencoder_conf:\n  model: exp/small_ctc  # stage 3 makes it\n")
    (conf / "pretrain_conformer.yaml").write_text("teacher: whisper-tiny.en  # the ears\n")


def test_an_encoder_of_the_recipe_s_own_is_made_by_stage_3_and_scored_by_its_ctc(recipe):
    pretrainable(recipe)
    status, out, err = recipe.run("--encoder", "conformer", "--stage", "3")
    assert status == 0, err
    assert stages(err)[0] == 3 and sorted(stages(err)) == [-1, 0, 1, 2, 3, 4, 5]
    calls = recipe.calls()
    data = "--train dump/conformer_feats/train/data.jsonl --dev dump/conformer_feats/dev/data.jsonl"
    (pretrain,) = [line for line in calls if line.startswith("pretrain ")]
    assert pretrain == f"pretrain --config conf/pretrain_conformer.yaml {data} --out exp/small_ctc --ngpu 0"
    verbs = [line.split()[0] for line in calls]
    assert max(index for index, verb in enumerate(verbs) if verb == "prepare_text") < verbs.index("pretrain") < verbs.index("prepare_model")
    assert "fetch whisper-tiny.en" in calls and "whisper" not in verbs
    (own,) = [line for line in calls if line.startswith("ctc ")]
    test = "--data dump/conformer_feats/test/data.jsonl --out exp/own_small_ctc/decode_test"
    assert own == f"ctc --model exp/small_ctc {test} --ngpu 0"
    assert any(line.startswith("results ") and "--own exp/own_small_ctc" in line for line in calls)
    assert out.count("| Sum/Avg |") == 2 and "exp/own_small_ctc/decode_test/result.txt" in out
    assert (recipe.folder / "exp/small_ctc/log/pretrain.log").exists()

    shutil.rmtree(recipe.folder / "exp/small_ctc")
    for stage in ("train", "decode"):
        status, _, err = recipe.run("--encoder", "conformer", "--stage", stage, "--backfill", "false")
        assert status == 1 and "exp/small_ctc/config.json is missing; make it with: ./run.sh --stage model" in err
    recipe.calls()
    status, _, err = recipe.run("--encoder", "conformer", "--stage", "5")
    assert status == 0 and stages(err) == [5, 3] and recipe.verbs()[:3] == ["pretrain", "prepare_model", "decode"]


def test_a_given_encoder_is_neither_made_nor_scored_by_ctc(recipe):
    pretrainable(recipe)
    (recipe.folder / "conf/pretrain_conformer.yaml").unlink()  # nobody asks for it
    status, out, err = recipe.run("--encoder", "conformer", "--encoder-model", "/models/firered")
    assert status == 0, err
    verbs = recipe.verbs()
    assert "prepare_model" in verbs and not {"pretrain", "ctc", "whisper"} & set(verbs) and out.count("Sum/Avg") == 1
    assert not list(recipe.folder.glob("exp/own*"))


def test_an_encoder_that_no_configuration_makes_is_an_error_before_any_work(recipe):
    pretrainable(recipe)
    (recipe.folder / "conf/pretrain_conformer.yaml").unlink()
    status, _, err = recipe.run("--encoder", "conformer")
    message = "exp/small_ctc: a model under exp/ is made by stage 3 from conf/pretrain_conformer.yaml, which is missing"
    assert status == 1 and message in err and stages(err) == [] and recipe.verbs() == []


def test_a_configuration_elsewhere_and_no_teacher(recipe):
    """The encoder's role in the file says what makes it, not --encoder, which is then not given."""
    pretrainable(recipe)
    (recipe.folder / "conf/train_conformer.yaml").rename(recipe.folder / "mine.yaml")
    (recipe.folder / "conf/pretrain_conformer.yaml").write_text('teacher: ""  # CTC alone\n')
    status, _, err = recipe.run("--train-config", "mine.yaml", "--stage", "1", "--stop-stage", "3", "--own-score", "false")
    assert status == 0, err
    calls = recipe.calls()
    assert [line for line in calls if line.startswith("fetch")] == ["fetch --config mine.yaml"]
    assert any(line.startswith("pretrain --config conf/pretrain_conformer.yaml ") for line in calls)


def test_decoding_in_jobs(recipe):
    status, _, err = recipe.run("--decode-nj", "2")
    assert status == 0, err
    jobs = [call.split("--nj ")[1].split() for call in recipe.calls() if call.startswith("decode ")]
    assert sorted(jobs[:2]) == [["2", "--job", "1"], ["2", "--job", "2"]] and jobs[2] == ["2", "--job", "0"]


def test_tag_decode_config_and_test_sets(recipe):
    status, _, err = recipe.run("--tag", "try2", "--decode-config", "conf/decode_beam.yaml", "--test-sets", "test other")
    assert status == 0, err
    assert {path.name for path in (recipe.folder / "exp/whisper_try2").glob("decode*")} == {
        "decode_test_decode_beam",
        "decode_other_decode_beam",
    }
    decodes = [line for line in recipe.calls() if line.startswith("decode")]
    assert decodes and all(line.endswith("--decode-conf.beam 3 --decode-conf.max_tokens 9") for line in decodes)
    status, _, err = recipe.run("--test-sets", "nowhere")
    assert status == 1 and "data/nowhere is missing; the data sets of this corpus are: dev/ other/ test/ train/" in err


def test_experiment_repeats_itself(recipe):
    options = ("--tag", "a b", "--train-conf.max-steps", "7", "--nj", "1")
    assert recipe.run(*options, "--stage", "0", "--backfill", "true")[0] == 0
    script = recipe.folder / "exp/whisper_a b/run.sh"
    first = [line for line in recipe.calls() if line.startswith("train")]
    assert os.access(script, os.X_OK) and "--stage" not in script.read_text()
    process = recipe.start(script=str(script))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [line for line in recipe.calls() if line.startswith("train")] == first
    assert any("--nj 1" in line for line in first) is False


def test_corpus_folder_is_used_as_it_is(recipe):
    mine = recipe.root / "my corpus"
    mine.mkdir()
    (mine / "sound").touch()
    status, _, err = recipe.run("--corpus", str(mine), "--stop-stage", "data")
    assert status == 0, err
    assert not (recipe.folder / "downloads").exists() and (recipe.folder / "data/train/text").exists()


def test_own_score_can_be_left_out(recipe):
    status, out, _ = recipe.run("--own-score", "false")
    assert status == 0 and "whisper" not in recipe.verbs() and out.count("Sum/Avg") == 1


@pytest.mark.parametrize(
    "verb, stage, log", [("dump", 1, "dump/whisper_feats/train/log/dump.1.log"), ("train", 4, "exp/whisper/log/train.log")]
)
def test_a_failing_stage_ends_the_run_and_names_the_log(recipe, verb, stage, log):
    status, out, err = recipe.run(FAKE_FAIL=verb)
    assert status == 7 and "Sum/Avg" not in out and stages(err)[-1] == stage
    assert log in err and "bad luck" in err and f"stage {stage} (" in err.splitlines()[-1] and "failed" in err.splitlines()[-1]
    text = (recipe.folder / log).read_text()
    assert f"steermoe.bin.{verb}" in text and "# Ended (code 7)" in text
    assert recipe.run()[0] == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else True


@pytest.mark.parametrize("verb", ["dump", "train", "prepare_text"])
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_signals_end_the_children_too(recipe, verb, name, status):
    process = recipe.start(FAKE_HANG=verb)
    hanging = recipe.root / "hanging"
    expected = 2 if verb == "dump" else 1  # nj jobs
    limit = time.monotonic() + 90
    while not hanging.exists() or len(hanging.read_text().split()) < expected:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    os.kill(process.pid, getattr(signal, name))  # the script alone, not its group: the children hear of it through the script
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert name == "SIGKILL" or "stopped; the same command goes on from here" in err
    limit = time.monotonic() + 30
    while any(alive(int(pid)) for pid in hanging.read_text().split()):
        assert time.monotonic() < limit, "a job lives on"
        time.sleep(0.05)
