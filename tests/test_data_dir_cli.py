"""The data_dir verb and the scripts with Kaldi's names, called as a Kaldi user calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steermoe.bin import data_dir
from steermoe.data.kaldi_dir import fix, read_map, write_map
from steermoe.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("validate_data_dir", "fix_data_dir", "subset_data_dir", "split_data", "combine_data", "copy_data_dir")
has_bash = pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="needs bash")


def script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("PYTHONPATH", None)
    command = [str(ROOT / "utils" / f"{name}.sh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def work(tmp_path) -> Path:
    """data/train: 4 speakers x 3 utterances with real, short WAV files, paths relative to the folder."""
    utt2spk = {f"s{spk}-{utt}": f"s{spk}" for spk in range(4) for utt in range(3)}
    (tmp_path / "wav").mkdir()
    for number, utt in enumerate(utt2spk):
        soundfile.write(tmp_path / "wav" / f"{utt}.wav", np.full(1600 + 160 * number, 0.1), 16000)
    data = tmp_path / "data" / "train"
    write_map(data / "utt2spk", utt2spk)
    write_map(data / "text", {utt: f"words of {utt}" for utt in utt2spk})
    write_map(data / "wav.scp", {utt: f"wav/{utt}.wav" for utt in utt2spk})
    write_map(data / "utt2dur", {utt: 0.1 + 0.01 * number for number, utt in enumerate(utt2spk)})
    fix(data)
    return tmp_path


@has_bash
def test_scripts_as_a_kaldi_user_calls_them(work):
    def ok(name, *arguments):
        done = script(name, *arguments, cwd=work)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Successfully validated data-directory data/train" in ok("validate_data_dir", "--no-feats", "data/train")
    assert "kept all 12 utterances" in ok("fix_data_dir", "data/train")
    ok("subset_data_dir", "--first", "data/train", 5, "data/small")
    assert list(read_map(work / "data/small/utt2spk"))[-1] == "s1-1"
    (work / "list").write_text("s3\n")
    ok("subset_data_dir", "--spk-list", "list", "data/train", "data/s3")
    ok("split_data", "--per-utt", "data/train", 5)
    assert (work / "data/train/split5utt/5/wav.scp").is_file()
    ok("split_data", "data/train", 4)
    ok("combine_data", "--extra-files", "a b", "--skip-fix", "false", "data/both", "data/small", "data/s3")
    assert len(read_map(work / "data/both/text")) == 8
    ok("copy_data_dir", "--utt-prefix", "n-", "--spk-prefix", "n-", "--utt-suffix", "-x", "data/train", "data/copy")
    assert list(read_map(work / "data/copy/utt2spk"))[0] == "n-s0-0-x"
    ok("validate_data_dir", "--no-feats", "data/copy")


@has_bash
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_explain_and_refuse(work, name):
    done = script(name, "--help", cwd=work)
    assert done.returncode == 0 and "usage" in done.stdout
    for arguments in ((), ("--no-such-option", "data/train"), ("data/nowhere", "3", "data/out")[: 3 if "subset" in name else 2]):
        done = script(name, *arguments, cwd=work)
        assert done.returncode != 0 and "error:" in done.stderr and "Traceback" not in done.stderr


@has_bash
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck():
    files = [str(ROOT / "utils" / f"{name}.sh") for name in SCRIPTS]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@has_bash
def test_scripts_work_through_a_linked_folder(work):
    """Kaldi users link utils into their recipe."""
    (work / "utils").symlink_to(ROOT / "utils")
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["utils/validate_data_dir.sh", "--no-feats", "data/train"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_and_unknown_command(capsys):
    data_dir.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in data_dir.COMMANDS)
    with pytest.raises(UserError, match="unknown command 'valdate' .did you mean 'validate'"):
        data_dir.main(["valdate"])
    with pytest.raises(UserError, match="a command is missing"):
        data_dir.main([])


def test_wrong_numbers(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    for words in (["subset", "data/train", "many", "o"], ["split", "data/train", "two"], ["subset", "data/train", "3"]):
        with pytest.raises(SystemExit):
            data_dir.main(words)
        assert "error" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        data_dir.main(["copy", "--utt-prefix=1-", "data/train", "o"])
    assert "--utt-prefix 1-" in capsys.readouterr().err


def test_check_audio_names_every_broken_file(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    data_dir.main(["validate", "--no-feats", "--check-audio", "true", "data/train"])
    content = Path("wav/s1-1.wav").read_bytes()
    Path("wav/s1-1.wav").write_bytes(content[:-100])
    Path("wav/s2-0.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 12 utterances have broken audio; the first is s1-1: wav/s1-1\.wav: truncated"):
        data_dir.main(["validate", "--no-feats", "--check-audio", "true", "data/train"])
    assert "wav/s2-0.wav: empty audio file" in capsys.readouterr().err


def test_pipes_run_only_when_allowed(work, monkeypatch):
    monkeypatch.chdir(work)
    wav = read_map("data/train/wav.scp")
    write_map("data/train/wav.scp", {utt: f"touch ran; cat {path} |" for utt, path in wav.items()})
    data_dir.main(["validate", "--no-feats", "data/train"])
    with pytest.raises(UserError, match="--allow-pipes true"):
        data_dir.main(["validate", "--no-feats", "--check-audio", "true", "data/train"])
    assert not Path("ran").exists()
    data_dir.main(["validate", "--no-feats", "--check-audio", "true", "--allow-pipes", "true", "data/train"])
    assert Path("ran").exists()
