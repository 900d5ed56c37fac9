"""Stages 1 to 6 and transcription as a user types them, without bash, on a small corpus and random models."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"a-1": 0.6, "a-2": 1.1, "a-3": 0.8, "b-1": 0.7, "b-2": 1.3, "b-3": 0.5}


def steermoe(verb, *words, cwd, check=True):
    """Runs a verb as its own process; returns the finished process with text output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"steermoe.bin.{verb}", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stderr
    return done


def fails(verb, *words, cwd):
    """The one message of a run that must fail."""
    done = steermoe(verb, *words, cwd=cwd, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def make_data(folder: Path):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for utt, seconds in SECONDS.items():
        soundfile.write(folder / f"{utt}.flac", rng.normal(0, 0.1, int(16000 * seconds)), 16000)
    rows = {
        "wav.scp": {utt: folder / f"{utt}.flac" for utt in SECONDS},
        "text": dict(zip(SECONDS, ["one two", "three", "press star", "hello", "hello world", "two"])),
        "utt2spk": {utt: utt[0] for utt in SECONDS},
        "spk2utt": {"a": "a-1 a-2 a-3", "b": "b-1 b-2 b-3"},
        "utt2dur": SECONDS,
    }
    for name, mapping in rows.items():
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in mapping.items()))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_bases):
    """A recipe folder in which everything up to stage 6 has been run; tests of damage work on copies of what they break."""
    folder = tmp_path_factory.mktemp("recipe")
    make_data(folder / "data")
    config = {
        "encoder_conf": {"model": str(tiny_bases / "whisper"), "dtype": "float32"},
        "llm_conf": {"model": str(tiny_bases / "llm"), "dtype": "float32"},
        "train_conf": {"max_steps": 4, "valid_steps": 2, "batch_frames": 300, "num_threads": 1},
        "decode_conf": {"max_tokens": 8, "batch_frames": 300, "normalizer": "none"},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    logs = [dump(folder, "dump")]
    where = ("--data", "data", "--feats", "dump", "--out", "dump/data.jsonl")
    logs.append(steermoe("prepare_text", "--config", "train.yaml", *where, cwd=folder))
    steermoe("prepare_model", "--config", "train.yaml", "--exp", "exp", cwd=folder)
    logs += [steermoe(*TRAIN, cwd=folder), steermoe(*DECODE, cwd=folder)]
    (folder / "progress.log").write_text("".join(done.stderr for done in logs))
    score = ("--ref", "exp/decode_test/ref.trn", "--hyp", "exp/decode_test/hyp.trn", "--out", "exp/decode_test")
    steermoe("score", *score, "--unit", "word", "--normalizer", "none", cwd=folder)
    steermoe("results", "--exp", "exp", cwd=folder)
    steermoe("pack", "--exp", "exp", cwd=folder)
    return folder


TRAIN = ("train", "--config", "train.yaml", "--train", "dump/data.jsonl", "--dev", "dump/data.jsonl", "--exp", "exp")
DECODE = ("decode", "--exp", "exp", "--data", "dump/data.jsonl", "--out", "exp/decode_test")


def dump(folder, out, nj=1):
    for job in [*range(1, nj + 1), 0] if nj > 1 else [0]:
        words = ("--config", "train.yaml", "--data", "data", "--out", out, "--nj", nj, "--job", job)
        done = steermoe("dump", *words, cwd=folder)
    return done


def test_every_long_stage_shows_how_far_it_is_in_plain_lines(recipe):
    log = (recipe / "progress.log").read_text()
    assert all(f"{step} (100 %), " in log for step in ("dump data 1/1: 6/6 utt", "text data: 6/6 utt", "train: 4/4 step"))
    assert log.count(": 6/6 utt (100 %), ") >= 3 and log.count("/s, 00:00:00 left") >= 4  # and decoding


def test_features_and_text(recipe):
    from steermoe.data.ark import read_matrix

    entries = [json.loads(line) for line in (recipe / "dump" / "data.jsonl").open()]
    assert [entry["utt"] for entry in entries] == list(SECONDS)
    for entry in entries:
        matrix = read_matrix(str(recipe / entry["feats"]))
        assert matrix.shape == (entry["num_frames"], 80)
        assert abs(entry["num_frames"] / 100 - SECONDS[entry["utt"]]) < 0.03 and entry["duration"] == SECONDS[entry["utt"]]


def test_any_number_of_jobs_gives_the_same_matrices_and_index(recipe):
    from steermoe.data.ark import read_matrix

    dump(recipe, "dump3", nj=3)
    one, three = ((recipe / name / "feats.scp").read_text().split() for name in ("dump", "dump3"))
    assert one[::2] == three[::2] == list(SECONDS)
    for left, right in zip(one[1::2], three[1::2]):
        assert np.array_equal(read_matrix(str(recipe / left)), read_matrix(str(recipe / right)))
    assert {path.split(":")[0] for path in three[1::2]} == {f"dump3/feats.{job}.ark" for job in (1, 2, 3)}
    assert (recipe / "dump" / "utt2num_frames").read_bytes() == (recipe / "dump3" / "utt2num_frames").read_bytes()


def test_an_interrupted_dump_goes_on_and_ends_with_the_same_bytes(recipe):
    whole = (recipe / "dump" / "feats.1.ark").read_bytes()
    dump(recipe, "dumpcut")
    (recipe / "dumpcut" / "feats.scp").unlink()
    for cut in (len(whole) // 2, 3):
        (recipe / "dumpcut" / "feats.1.ark").write_bytes(whole[:cut])
        dump(recipe, "dumpcut")
        assert (recipe / "dumpcut" / "feats.1.ark").read_bytes() == whole
        (recipe / "dumpcut" / "feats.scp").unlink()


def test_joining_before_a_job_has_finished_is_an_error(recipe):
    words = ("--config", "train.yaml", "--data", "data", "--out", "dumphalf", "--nj", 2)
    steermoe("dump", *words, "--job", 1, cwd=recipe)
    assert "feats.2.ark: 0 of 3 utterances" in fails("dump", *words, "--job", 0, cwd=recipe)


def test_what_is_finished_is_not_done_again(recipe):
    files = [recipe / name for name in ("dump/feats.1.ark", "dump/data.jsonl", "exp/checkpoints/best.safetensors", "exp/decode_test/text")]
    before = [file.stat().st_mtime_ns for file in files]
    again = [
        dump(recipe, "dump"),
        steermoe("prepare_text", "--config", "train.yaml", "--data", "data", "--feats", "dump", "--out", "dump/data.jsonl", cwd=recipe),
        steermoe(*TRAIN, cwd=recipe),
        steermoe(*DECODE, cwd=recipe),
    ]
    assert all("up to date" in done.stdout for done in again)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_what_is_too_long_or_too_short_is_counted(recipe):
    limits = ("--data-conf.max-seconds", 1.2, "--data-conf.min-seconds", 0.55, "--data-conf.max-tokens", 9)
    words = ("--config", "train.yaml", "--data", "data", "--feats", "dump", "--out", "dump/few.jsonl", *limits)
    done = steermoe("prepare_text", *words, cwd=recipe)
    assert "3 utterances" in done.stdout
    assert all(part in done.stdout for part in ("1 over 1.2 s", "1 under 0.55 s", "1 over 9 tokens"))


def test_nothing_left_is_an_error(recipe):
    words = ("--config", "train.yaml", "--data", "data", "--feats", "dump", "--out", "dump/none.jsonl", "--data-conf.min-seconds", 9)
    assert "no utterance left (dropped: 6 under 9 s)" in fails("prepare_text", *words, cwd=recipe)
    assert not (recipe / "dump" / "none.jsonl").exists()


def test_model_table_counts_the_live_model(recipe, tiny_model):
    info = (recipe / "exp" / "model_info.txt").read_text()
    llm = sum(parameter.numel() for parameter in tiny_model.llm.parameters())
    adapter = sum(parameter.numel() for part in (tiny_model.steering, tiny_model.projector) for parameter in part.parameters())
    assert f"{llm:,}" in info and tiny_model.encoder.fingerprint in info
    # the recipe has 8 experts, the fixture 4: 4 more vectors, router columns and biases in each of 2 layers of width 32
    assert f"{adapter + 2 * 4 * (32 + 32 + 1):,}" in info.split("sum")[1]


def test_experiment_folder_says_what_made_it(recipe):
    config = yaml.safe_load((recipe / "exp" / "config.yaml").read_text())
    assert config["train_conf"]["seed"] == 1 and config["steering_conf"]["num_experts"] == 8 and config["optim_conf"]["betas"] == [0.9, 0.999]
    environment = json.loads((recipe / "exp" / "environment.json").read_text())
    assert {"git", "torch", "processor", "python"} <= environment.keys()


def test_decoding_leaves_text_trn_and_figures(recipe):
    folder = recipe / "exp" / "decode_test"
    assert [line.split()[0] for line in (folder / "text").open()] == list(SECONDS)
    assert [line.rsplit("(", 1)[1] for line in (folder / "ref.trn").open()] == [f"{utt[0]}-{utt})\n" for utt in SECONDS]
    figures = json.loads((folder / "decode.json").read_text())
    assert figures["utterances"] == 6 and sum(figures["ended"].values()) == 6 and figures["real_time_factor"] > 0
    assert not list(folder.glob(".hyp.*"))


def test_results_hold_configuration_git_and_table(recipe):
    text = (recipe / "exp" / "RESULTS.md").read_text()
    assert all(part in text for part in ("|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|", "|test (repeat guard", "git ", "num_experts", "95 %"))


def test_package_decodes_alone(recipe, tmp_path):
    wav = recipe / "data" / "a-1.flac"
    lines = [steermoe("transcribe", "--model", recipe / model, wav, cwd=tmp_path).stdout for model in ("exp", "exp/package")]
    assert lines[0] == lines[1] and lines[0].startswith(f"{wav}\t")


def test_transcribe_any_rate_and_channels_in_the_given_order(recipe, tmp_path):
    rng = np.random.default_rng(1)
    soundfile.write(tmp_path / "stereo.wav", rng.normal(0, 0.1, (44100, 2)), 44100)
    soundfile.write(tmp_path / "low.ogg", rng.normal(0, 0.1, 24000), 8000)
    names = ["stereo.wav", "low.ogg", recipe / "data" / "b-2.flac"]
    done = steermoe("transcribe", "--model", recipe / "exp", *names, cwd=tmp_path)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(name) for name in names]


def test_transcription_agrees_with_decoding(recipe):
    done = steermoe("transcribe", "--model", "exp", *(f"data/{utt}.flac" for utt in SECONDS), cwd=recipe)
    decoded = [line.rstrip("\n").partition(" ")[2] for line in (recipe / "exp" / "decode_test" / "text").open()]
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == decoded


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (("train", *TRAIN[1:], "--train-conf.seed", "2"), "train_conf.seed was 1, is 2"),
        (("train", *TRAIN[1:-1], "exp_b", "--train-conf.sed", "2"), "did you mean 'seed'"),
        (("train", *TRAIN[1:-1], "exp_c", "--ngpu", "1"), "no GPU"),
        (("train", *TRAIN[1:-1], "exp_d", "--encoder-conf.model", "nowhere/whisper"), "nowhere/whisper"),
        (("decode", *DECODE[1:], "--train-conf.seed", "2"), "decoding takes --decode-conf.KEY"),
        (("decode", *DECODE[1:], "--decode-conf.beem", "2"), "did you mean 'beam'"),
        (("decode", *DECODE[1:], "--decode-conf", "2"), "decoding takes --decode-conf.KEY"),
        (("decode", *DECODE[1:], "--ngpu", "4"), "--ngpu 4: 0 (the CPU) or 1"),
        (("prepare_model", "--config", "train.yaml", "--exp", "/proc/nope"), "/proc/nope"),
        (("decode", "--exp", "data", *DECODE[3:]), "no trained adapter"),
        (("decode", "--exp", "exp", "--data", "none.jsonl", "--out", "x"), "none.jsonl: no such file"),
        (("transcribe", "--model", "exp", "train.yaml"), "train.yaml"),
        (("transcribe", "--model", "exp", "missing.wav"), "missing.wav"),
        (("dump", "--config", "train.yaml", "--data", "nothere", "--out", "y"), "nothere"),
        (("dump", "--config", "train.yaml", "--data", "data", "--out", "y", "--compression", "7"), "compression"),
        (("results", "--exp", "data"), "run stage 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_bad_input_is_one_message(recipe, verb, message):
    if verb[-2:] == ("--ngpu", "1"):
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    error = fails(*verb, cwd=recipe)
    assert message in error and len(error.strip().splitlines()) <= 4


def test_new_recordings_under_old_names_are_noticed_by_every_stage(recipe, tmp_path):
    import shutil

    shutil.copytree(recipe, tmp_path / "copy")
    copy = tmp_path / "copy"
    scp = copy / "data" / "wav.scp"
    scp.write_text(scp.read_text().replace(str(recipe), str(copy)))
    text = ("prepare_text", "--config", "train.yaml", "--data", "data", "--feats", "dump", "--out", "dump/data.jsonl")
    dump(copy, "dump")
    steermoe(*text, cwd=copy)
    steermoe(*TRAIN[:-1], "exp_new", cwd=copy)
    assert "up to date" in dump(copy, "dump").stdout and "up to date" in steermoe(*TRAIN[:-1], "exp_new", cwd=copy).stdout
    samples, rate = soundfile.read(copy / "data" / "a-1.flac")
    soundfile.write(copy / "data" / "a-1.flac", samples[::-1], rate)
    assert "up to date" not in dump(copy, "dump").stdout
    assert "up to date" not in steermoe(*text, cwd=copy).stdout
    assert "other data" in fails(*TRAIN[:-1], "exp_new", cwd=copy)


def test_an_edited_decode_conf_is_taken_up(recipe):
    config = yaml.safe_load((recipe / "train.yaml").read_text())
    config["decode_conf"]["beam"] = 2
    (recipe / "beam.yaml").write_text(yaml.safe_dump(config))
    assert "up to date" in steermoe("train", "--config", "beam.yaml", *TRAIN[3:], cwd=recipe).stdout
    steermoe(*DECODE[:-1], "exp/beam", cwd=recipe)
    assert json.loads((recipe / "exp" / "beam" / "decode.json").read_text())["decode_conf"]["beam"] == 2
    steermoe(*TRAIN, cwd=recipe)


def test_an_encoder_that_has_been_made_anew_is_noticed(tiny_bases, tmp_path, monkeypatch, capsys):
    """exp/NAME of stage 3: its new weights are in model_info.txt, and an adapter of the old ones is not taken for finished."""
    torch = pytest.importorskip("torch")
    import tones
    from steermoe.bin import prepare_model, train
    from steermoe.encoders.conformer import Conformer, ConformerEncoder, save_conformer
    from steermoe.errors import UserError

    def make_encoder(seed):
        torch.manual_seed(seed)
        save_conformer("exp/small_ctc", Conformer(16, 1, 2, kernel=5), {})
        Path("exp/small_ctc/.pretrain.done").write_text("the same settings and data each time")
        return ConformerEncoder.from_pretrained("exp/small_ctc").fingerprint

    def run(verb, *words):
        verb.main(["--config", "train.yaml", *words, "--exp", "exp/conformer"])
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)  # would outlive this test
    data = ("--train", str(tones.make_corpus(tmp_path, "train", 2)), "--dev", str(tones.make_corpus(tmp_path, "dev", 1)))
    config = {
        "encoder": "conformer",
        "encoder_conf": {"model": "exp/small_ctc", "dtype": "float32"},
        "llm_conf": {"model": str(tiny_bases / "llm"), "dtype": "float32"},
        "train_conf": {"max_steps": 1},
    }
    Path("train.yaml").write_text(yaml.safe_dump(config))
    old = make_encoder(1)
    assert old in run(prepare_model)
    run(train, *data)
    assert "up to date" in run(train, *data)
    new = make_encoder(2)
    assert new in run(prepare_model) and new in Path("exp/conformer/model_info.txt").read_text()
    with pytest.raises(UserError, match="trained with other weights of encoder"):
        run(train, *data)
    assert make_encoder(1) == old and "up to date" in run(train, *data)


def test_overrides_may_stand_before_the_files(recipe):
    done = steermoe("transcribe", "--model", "exp", "--decode-conf.beam", 2, "data/a-1.flac", cwd=recipe)
    assert done.stdout.startswith("data/a-1.flac\t")


def test_damaged_features_are_named(recipe):
    import shutil

    shutil.copytree(recipe / "dump", recipe / "bad")
    ark = recipe / "bad" / "feats.1.ark"
    ark.write_bytes(ark.read_bytes()[:-500])
    text = (recipe / "bad" / "data.jsonl").read_text().replace("dump/feats", "bad/feats")
    (recipe / "bad" / "data.jsonl").write_text(text)
    words = ("--config", "train.yaml", "--train", "bad/data.jsonl", "--dev", "bad/data.jsonl", "--exp", "exp_bad")
    assert "bad/feats.1.ark" in fails("train", *words, cwd=recipe)


def test_a_half_written_line_of_data_is_named(recipe):
    lines = (recipe / "dump" / "data.jsonl").read_text().splitlines()
    (recipe / "cut.jsonl").write_text("\n".join(lines[:2] + [lines[2][:30]]))
    assert "cut.jsonl:3: not JSON" in fails("decode", "--exp", "exp", "--data", "cut.jsonl", "--out", "z", cwd=recipe)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_message(tmp_path):
    code = (
        "import sys; from steermoe.bin.cli import run\n"
        "def main(argv):\n"
        "    with open('/dev/full', 'w') as stream: stream.write('x' * 100000)\n"
        "sys.argv = ['dump']; run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no space left on the disk" in done.stderr and "Traceback" not in done.stderr


def test_training_killed_with_sigkill_ends_with_the_same_adapter(recipe):
    """The real signal, in the middle of real training."""
    slow = ("--train-conf.max-steps", 40, "--train-conf.save-steps", 1, "--train-conf.valid-steps", 20)
    steermoe(*TRAIN[:-1], "exp_whole", *slow, cwd=recipe)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "steermoe.bin.train", *TRAIN[1:-1], "exp_killed", *map(str, slow)]
    process = subprocess.Popen(command, cwd=recipe, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = recipe / "exp_killed" / "log" / "train.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (recipe / "exp_killed" / "checkpoints" / "last.safetensors").exists()
    steermoe(*TRAIN[:-1], "exp_killed", *slow, cwd=recipe)
    for name in ("last", "best"):
        one, other = ((recipe / exp / "checkpoints" / f"{name}.safetensors").read_bytes() for exp in ("exp_whole", "exp_killed"))
        assert one == other
