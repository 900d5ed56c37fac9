"""Files, stamps, names, types, progress, verbs: what everything else stands on."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from steermoe.checkpoint import save_resume
from steermoe.data.dataset import AudioTextDataset
from steermoe.dtypes import resolve_dtype
from steermoe.environment import describe, git_hash
from steermoe.errors import UserError
from steermoe.files import append_jsonl, atomic_write, read_json, read_lines, resume_jsonl, sha256_file
from steermoe.progress import Progress
from steermoe.registry import ROLES, keywords, nearest, resolve
from steermoe.stamp import Stamp, stamp_of

ROOT = Path(__file__).resolve().parents[1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as stream:
        stream.write("new\n")
    assert path.read_bytes() == b"new\n"


def test_text_that_is_not_utf8_is_named_with_line_and_fix(tmp_path):
    (tmp_path / "text").write_bytes("a good\nb sch\xf6n\n".encode("latin1"))
    with pytest.raises(UserError, match=r"text:2: not UTF-8 .*0xf6.*iconv"):
        list(read_lines(tmp_path / "text"))


def test_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1,\n')
    with pytest.raises(UserError, match="x.json:[12]: not JSON"):
        read_json(tmp_path / "x.json")


def test_a_journal_loses_only_its_half_line(tmp_path):
    path = tmp_path / "journal"
    with open(path, "a", encoding="utf-8") as stream:
        append_jsonl(stream, {"a": "å\u2028b"})
        stream.write('{"b"')
    assert resume_jsonl(path) == [{"a": "å\u2028b"}]
    with open(path, "a", encoding="utf-8") as stream:
        append_jsonl(stream, {"c": 1})
    assert resume_jsonl(path) == [{"a": "å\u2028b"}, {"c": 1}] and resume_jsonl(tmp_path / "none") == []


def test_hash_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_stamp_is_fresh_until_settings_inputs_or_outputs_change(tmp_path):
    given, made = tmp_path / "in", tmp_path / "out"
    given.write_text("1")
    made.write_text("2")

    def fresh(settings):
        return Stamp(tmp_path / "stamp", settings, [given]).fresh([made])

    assert not fresh({"a": 1})
    Stamp(tmp_path / "stamp", {"a": 1}, [given]).write()
    assert fresh({"a": 1}) and not fresh({"a": 2})
    given.write_text("3")
    assert not fresh({"a": 1})
    given.write_text("1")
    made.unlink()
    assert not fresh({"a": 1})


def test_inputs_of_one_name_are_told_apart(tmp_path):
    files = [tmp_path / name / "data.jsonl" for name in ("train", "dev")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    Stamp(tmp_path / "stamp", {}, files).write()
    assert Stamp(tmp_path / "stamp", {}, files).fresh() and not Stamp(tmp_path / "stamp", {}, files[::-1]).fresh()
    files[0].write_text("new")
    assert not Stamp(tmp_path / "stamp", {}, files).fresh()


def test_an_inputs_own_stamp_counts(tmp_path):
    (tmp_path / "x").write_text("same")
    Stamp(stamp_of(tmp_path / "x"), {"made": 1}).write()
    Stamp(tmp_path / "stamp", {}, [tmp_path / "x"]).write()
    Stamp(stamp_of(tmp_path / "x"), {"made": 2}).write()
    assert not Stamp(tmp_path / "stamp", {}, [tmp_path / "x"]).fresh()


@pytest.mark.parametrize("role", ROLES)
def test_every_registered_name_resolves(role):
    for name in ROLES[role]:
        assert isinstance(resolve(role, name), type)
        keywords(role, name)


def test_names_of_roles():
    assert resolve("encoder", "steermoe.encoders.whisper:WhisperEncoder") is resolve("encoder", "whisper")
    with pytest.raises(UserError, match="'wisper' is unknown .did you mean 'whisper'"):
        resolve("encoder", "wisper")
    with pytest.raises(UserError, match="pip install no_such_package"):
        resolve("encoder", "no_such_package.module:Encoder")
    with pytest.raises(UserError, match="has no 'Nothing'"):
        resolve("encoder", "steermoe.encoders.whisper:Nothing")
    assert nearest("zzz", ["b", "a"]) == " (known: a, b)"


def test_types():
    assert resolve_dtype("float16") is torch.float16 and resolve_dtype("auto") in (torch.bfloat16, torch.float32)
    with pytest.raises(UserError, match="'half' is not one of auto"):
        resolve_dtype("half")


def test_environment_is_text():
    environment = describe()
    assert environment["torch"] in torch.__version__ and all(isinstance(value, str) for value in environment.values())
    assert environment["git"] == git_hash()


def test_progress_in_a_log_has_rate_and_time_left(capsys):
    with Progress("dump", 4, "utt", done=2, every_s=0.0) as progress:
        progress.update(1, note="loss 3")
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("dump: 3/4 utt (75 %), ") and "utt/s" in line and "left" in line and line.endswith("loss 3")


def test_inner_progress_speaks_only_when_it_takes_long(capsys):
    for every_s, lines in ((0.0, 2), (60.0, 0)):
        with Progress("validation", 2, "batch", every_s=every_s, inner=True) as progress:
            progress.update(1)
            progress.update(1)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_data_lines_must_be_complete_and_agree_with_the_features(tmp_path):
    path = tiny.make_dataset(tmp_path, [50, 60])
    text = path.read_text()
    path.write_text(text.replace('"num_tokens"', '"tokens"', 2))
    with pytest.raises(UserError, match="train.jsonl:1: no 'num_tokens'"):
        AudioTextDataset(path)
    path.write_text(text.replace('"num_frames": 60', '"num_frames": 61'))
    with pytest.raises(UserError, match="60 frames, .* says 61 for spk1-train001"):
        AudioTextDataset(path)[1]
    path.write_text("")
    with pytest.raises(UserError, match="no utterance"):
        AudioTextDataset(path)


def verbs():
    return sorted(file.stem for file in (ROOT / "steermoe" / "bin").glob("*.py") if file.stem not in ("__init__", "__main__", "cli"))


def test_all_verbs_are_listed():
    done = subprocess.run([sys.executable, "-m", "steermoe.bin", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in done.stdout.splitlines()[2:]}
    assert sorted(listed) == verbs() and all(listed.values())


@pytest.mark.parametrize("words", [[], ["fetch", "--list"]])
def test_a_reader_that_has_gone_is_no_error(words):
    """As in `steermoe | head -0`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "steermoe.bin", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


def test_an_unknown_verb_has_a_hint():
    done = subprocess.run([sys.executable, "-m", "steermoe.bin", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "did you mean 'train'" in done.stderr


@pytest.mark.parametrize("verb", verbs())
def test_help_of_every_verb_explains_every_option(verb):
    command = [sys.executable, "-m", "steermoe.bin", verb.replace("_", "-"), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "resume.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as raised:
        save_resume(path, {"step": 1})
    assert raised.value.filename == str(path) and path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
