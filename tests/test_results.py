"""RESULTS.md of one experiment and of several side by side."""

from pathlib import Path

import pytest

from steermoe.bin import results
from steermoe.errors import UserError
from steermoe.files import write_json

ENVIRONMENT = dict.fromkeys(("git", "python", "torch", "transformers", "processor", "gpu"), "?")
DATA = {"train": "697 utterances of 12 speakers, 2.38 h", "dev": "60 utterances of 4 speakers, 0.20 h"}


def make_exp(folder: Path, rate: float, config: str = "init: ''\n", environment: dict = ENVIRONMENT) -> Path:
    """What stages 3 to 5 leave, as far as RESULTS.md reads it."""
    for name in ("log", "decode_test_default"):
        (folder / name).mkdir(parents=True)
    counts = {"sentences": 2, "n": 10, "c": 8, "s": 1, "d": 1, "i": 0, "sentence_errors": 1, "unit": "word", "normalizer": "english"}
    write_json(folder / "decode_test_default/summary.json", counts | {"rate": rate, "low": rate - 1, "high": rate + 1})
    (folder / "log/train.jsonl").write_text('{"step": 1, "seconds": 60.0}\n{"step": 2, "seconds": 60.0, "dev_loss": 1.5}\n')
    (folder / "model_info.txt").write_text("a table of parameters\n")
    (folder / "config.yaml").write_text(config)
    write_json(folder / "environment.json", environment)
    return folder


def test_the_data_and_where_training_started_are_said(tmp_path):
    exp = make_exp(tmp_path / "whisper", 20.0, "init: pretrained\n", ENVIRONMENT | DATA)
    results.main(["--exp", str(exp), "--about", "a corpus (CC0)"])
    text = (exp / "RESULTS.md").read_text()
    assert f"- data: a corpus (CC0); trained on {DATA['train']}; validated on {DATA['dev']}\n" in text
    assert "- started at the adapter: `pretrained`\n" in text and "- 2 steps, 2.0 min; the adapter is that of step 2" in text


def test_an_experiment_of_before_the_data_was_noted(tmp_path):
    text = results.make_results(make_exp(tmp_path / "whisper", 20.0, "encoder: whisper\n"), None)
    assert "made by" not in text and "- data:" not in text and "started at" not in text and text.startswith("# whisper\n")


def test_several_experiments_share_a_table_and_keep_their_own_sections(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_exp(Path("exp/whisper"), 90.0)
    make_exp(Path("exp/whisper_init_pretrained"), 20.0, "init: pretrained\n")
    make_exp(Path("exp/own_whisper"), 5.0)
    results.main(["--exp", "exp/whisper", "exp/whisper_init_pretrained", "--own", "exp/own_whisper"])
    text = Path("RESULTS.md").read_text()
    top, *sections = text.split("\n## ")
    assert top.startswith("# whisper, whisper_init_pretrained\n")
    rows = [line.split("|")[1:9:7] for line in top.splitlines() if ": test_default" in line]
    assert rows == [["whisper: test_default", "90.0"], ["whisper_init_pretrained: test_default", "20.0"], ["own_whisper: test_default", "5.0"]]
    assert [section.splitlines()[0] for section in sections] == ["whisper", "whisper_init_pretrained"]
    assert all("\n### Model\n" in section and "\n### Configuration\n" in section for section in sections)


def test_an_experiment_that_was_not_scored_is_named(tmp_path):
    make_exp(tmp_path / "one", 9.0)
    with pytest.raises(UserError, match="two: no decode_.*run stage 5 first"):
        results.join_results([tmp_path / "one", tmp_path / "two"], None)
