"""The configuration: every key known, typed, overridable; every error names the place and the nearest key."""

import pytest

from steermoe.bin.cli import Parser, parse_with_config
from steermoe.config import Config, load_config, parse_overrides
from steermoe.errors import UserError


def write(tmp_path, text):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def test_a_file_over_the_defaults(tmp_path):
    config = load_config(write(tmp_path, "steering_conf: {num_experts: 4}\noptim_conf: {lr: {router: 1e-5}}\n"))
    resolved = {"scale": 0.1, "init_std": 0.01, "shared_router": False, "top_k": 0}  # defaults are written out
    assert config.steering_conf == {"num_experts": 4} | resolved
    assert config.encoder_conf == {"model": "whisper-tiny.en", "window": "trim", "dtype": "auto"}
    assert config.optim_conf.lr == {"projector": 1e-4, "steering": 1e-2, "router": 1e-5}


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    config = load_config(None, ["--train-conf.seed", "7", "--llm-conf.system", '""', "--data-conf.prompt", "写: <audio>"])
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("word", "value", "read"),
    [("--train-conf.max-steps", "20", 20), ("--optim_conf.warmup_steps", "3", 3), ("--optim-conf.lr.router", "1e-4", 1e-4)],
)
def test_overrides_on_the_command_line(word, value, read):
    config = load_config(None, [word, value])
    for part in word[2:].replace("-", "_").split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    assert config == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encodr: whisper", "unknown key encodr .did you mean 'encoder'"),
        ("train_conf: {max_step: 3}", "unknown key train_conf.max_step .did you mean 'max_steps'"),
        ("steering_conf: {experts: 3}", "unknown key steering_conf.experts .did you mean 'num_experts'"),
        ("steering_conf: {num_experts: four}", "steering_conf.num_experts: 'four' is not a whole number"),
        ("projector: konv", "projector: 'konv' is unknown"),
        ("optim_conf: {lr: {routr: 1}}", "optim_conf.lr.routr .did you mean 'router'"),
        ("optim_conf: {schedule: step}", "schedule"),
        ("decode_conf: {beam: 0}", "decode_conf.beam: 0 is below 1"),
        ("train_conf: {grad_clip: -1}", "train_conf.grad_clip: -1.0 is below 0"),
        ("optim_conf: {lr: {router: -1}}", "optim_conf.lr: -1.0 is below 0"),
        ("optim_conf: {betas: [0.9]}", "not two numbers"),
        ("train_conf: {max_steps: 0}", "train_conf.max_steps: 0 is below 1"),
        ("train_conf: {seed: true}", "train_conf.seed: True is not a whole number"),
        ("train_conf: 3", "train_conf holds keys"),
        ("{llm: 'steermoe.llms.causal:CausalLM', llm_conf: {chat: false}}", "llm_conf.model is missing"),
        ("a: b: c", ":1: not YAML"),
        ("- 1", "list of `key: value`"),
        ("decode_conf: {ctc_weight: 0.5}", "decode_conf.ctc_weight needs CTC.*set `projector: token`"),
        ("objective: joint", "objective: joint needs CTC.*set `projector: token`"),
        ("decode_conf: {ctc_weight: 1.5}", "ctc_weight: 1.5 is not from 0 to 1"),
        ("decode_conf: {min_confidence: 2.0}", "min_confidence: 2.0 is not from 0 to 1"),
        ("decode_conf: {min_confidence: 0.5}", "decode_conf.min_confidence needs CTC"),
        ("decode_conf: {ctc_temperature: 0}", "decode_conf.ctc_temperature: 0.0 is not over 0"),
        ("decode_conf: {unheard: ',a'}", "decode_conf.unheard: ',a' are not all punctuation"),
        ("decode_conf: {unheard: '。天'}", "decode_conf.unheard: '。天' are not all punctuation"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load_config(path)


@pytest.mark.parametrize("prompt", ["task #1 please ", "write: <audio>", "[noise] or not? ", "yes"])
def test_a_prompt_on_the_command_line_stays_as_it_was_typed(prompt):
    if prompt == "yes":  # YAML's word for true; quoting it says that it is a text
        assert load_config(None, ["--data-conf.prompt", "'yes'"]).data_conf.prompt == "yes"
    elif prompt.startswith("["):
        assert load_config(None, ["--data-conf.prompt", f'"{prompt}"']).data_conf.prompt == prompt
    else:
        assert load_config(None, ["--data-conf.prompt", prompt]).data_conf.prompt == prompt


def test_yaml_never_runs_code(tmp_path):
    with pytest.raises(UserError, match="not YAML"):
        load_config(write(tmp_path, "encoder: !!python/object/apply:os.system ['true']"))


@pytest.mark.parametrize("words", [["--train-conf.seed"], ["train-conf.seed", "1"]])
def test_overrides_come_in_pairs(words):
    with pytest.raises(UserError, match="--train-conf"):
        parse_overrides(words)


def test_missing_file():
    with pytest.raises(UserError, match="nowhere.yaml: no such file"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--out=x"], "--out x"), (["--ot", "x"], "did you mean '--out'"), (["--train-cnf.seed", "1"], "did you mean '--train-conf'")],
)
def test_options_of_a_verb(words, message, capsys):
    parser = Parser(prog="x")
    parser.add_argument("--config")
    parser.add_argument("--out")
    with pytest.raises(SystemExit) as stopped:
        parse_with_config(parser, words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_list_of_keys_is_deliberate():
    """A new option is a decision: change this list with the documentation."""
    parts = ("data_conf", "augment_conf", "optim_conf", "train_conf", "decode_conf")
    keys = {f"{part}.{key}" for part in parts for key in vars(getattr(Config(), part))}
    assert sorted(key.partition(".")[2] for key in keys if key.startswith("train_conf")) == [
        "accum_grad", "batch_frames", "grad_clip", "heard_versions", "max_batch", "max_steps", "num_threads", "patience", "save_steps", "seed",
        "valid_steps",
    ]  # fmt: skip
    assert len(keys) == 45
