"""docs/*.md and the READMEs: every command is checked, and what can be run is run, in order, in a copy of the checkout.

Above each ```bash, ```console or ```python block of docs/ stands `<!-- run: WHEN -->`, which a reader of the page does not see:
  quick      run here; a python block meets a tiny random model in place of the adapter that comes with the code
  slow       run with the real frozen models (--slow)
  network    run with --network: it fetches something
  no, WHY    not run: a cluster, GPUs or a model that is not at hand
Whatever it says, a quick test reads all of them: verbs and scripts that exist, options that they know, configuration keys, and
links and inline options of the text.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
import pytest
import soundfile
import yaml
from recipes import MADE
from toneme import speak

from steermoe import hub, pretrained
from steermoe.bin import cli, data_dir
from steermoe.bin.__main__ import verbs
from steermoe.config import Config, config_from_dict, parse_overrides
from steermoe.errors import UserError
from steermoe.registry import ROLES, keywords

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READMES = [ROOT / "README.md", ROOT / "egs" / "README.md"]
WHEN = ("quick", "slow", "network", "no")
SHELL = ("bash", "console", "sh")
OTHERS = {  # programs that are not ours
    "apt-get", "arecord", "cat", "cd", "cp", "curl", "echo", "export", "find", "git", "head", "ls", "mkdir", "mv", "nl", "pip",
    "printf", "sbatch", "scontrol", "sed", "sort", "source", "squeue", "tail", "tensorboard", "unzip", "df", "nvidia-smi",
}  # fmt: skip


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    when: str  # with its reason
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that are to be run."""
    blocks, when, fence = [], "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence is not None:
            if line.startswith("```"):
                if fence[0] in (*SHELL, "python"):
                    blocks.append(Block(page, fence[1], fence[0], when, "\n".join(fence[2]) + "\n"))
                fence, when = None, ""
            else:
                fence[2].append(line)
        elif line.startswith("```"):
            fence = (line[3:].strip(), number, [])
        elif comment := re.fullmatch(r"<!-- run: (.+) -->", line.strip()):
            when = comment[1]
        elif line.strip():
            when = ""
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
README_BLOCKS = [block for page in READMES for block in read_blocks(page)]


def ids(block: Block) -> str:
    return block.where


# What every block and every page must be


def test_there_is_a_page_for_each_thing_and_the_index_names_them_all():
    names = {page.name for page in PAGES}
    asked = {"first_run", "own_corpus", "own_encoder", "own_llm", "gpus_and_slurm", "report", "troubleshooting", "README"}
    assert {f"{name}.md" for name in asked} <= names
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in index for name in names - {"README.md"})
    assert all(any(block.page == page for block in BLOCKS) for page in PAGES if page.name != "README.md")


@pytest.mark.parametrize("block", BLOCKS, ids=ids)
def test_every_block_says_when_it_is_run(block):
    when, _, why = block.when.partition(", ")
    assert when in WHEN, f"{block.where}: no <!-- run: {' | '.join(WHEN)} --> above it"
    assert bool(why) == (when == "no"), f"{block.where}: `no` needs a reason, the others have none"


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_complaint_has_an_answer():
    """The list of what users of such systems complain about most; each of these is a heading."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = "\n".join(re.findall(r"^## (.+)$", text, re.MULTILINE)).lower()
    for word in (
        "repeat", "refus", "reproduce", "nan", "out of memory", "install", "hang", "resume", "30 s", "format", "which fields",
        "slow", "stream", "normalis", "batch",
    ):  # fmt: skip
        assert word in headings, word


# Reading commands


class Command(NamedTuple):
    """Words of one simple command, and the folder that it is run in, seen from the checkout's root."""

    words: list[str]
    folder: Path


def read_commands(text: str) -> Iterator[Command]:
    """Of a bash block, which begins in the checkout's root."""
    text = re.sub(r"<<-?\s*'?(\w+)'?[^\n]*\n.*?\n\1\n", "\n", text, flags=re.DOTALL)  # what a here-document says is no command
    text = re.sub(r"^\$ ", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\(([^()]*)\)", lambda inner: f"; {inner[1]} ;", re.sub(r"\\\n", " ", text))
    folder = ROOT
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;&|]+", word):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words = words[1:]
                if words and words[0] == "cd":
                    folder = (folder / words[1]).resolve()
                elif words:
                    yield Command(words, folder)
                words = []
            else:
                words.append(word)


class Parsed(Exception):
    """Raised in place of what a verb does once its options have been understood."""


@pytest.fixture()
def only_parse(monkeypatch):
    real = cli.Parser.parse_known_args

    def parse(self, args=None, namespace=None):
        _, rest = real(self, args, namespace)
        for word in (word for word in rest if word.startswith("--")):
            if "." not in word and word[2:].replace("-", "_") not in vars(Config()):
                self.error(f"unknown option {word}")
        check_keys(rest)
        raise Parsed

    monkeypatch.setattr(cli.Parser, "parse_known_args", parse)
    monkeypatch.setattr(hub, "download", Path)  # of a USER/NAME that a command names


def check_keys(words: list[str]) -> None:
    """`--train-conf.max-steps 100`: the keys are known, the values of their types. Those of a role: of any of its classes."""
    pairs = [(words[i], words[i + 1]) for i in range(len(words) - 1) if words[i].startswith("--") and "." in words[i]]
    for name, value in pairs:
        assert known_key(name[2:].replace("-", "_")), f"{name}: no such key of the configuration"
        path, parsed = parse_overrides([name, value])[0]
        if path[0] not in {f"{role}_conf" for role in ROLES}:
            tree = parsed
            for key in reversed(path):
                tree = {key: tree}
            if path[-1] not in ("ctc_weight", "min_confidence"):  # the default projector has no CTC
                config_from_dict(tree, name)


def known_key(name: str) -> bool:
    head, *rest = name.split(".")
    role = head.removesuffix("_conf")
    if role in ROLES and role != head:
        return any(rest[0] in keywords(role, known) for known in ROLES[role])
    tree = Config().to_dict()
    for key in (head, *rest):
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


@cache
def script_options(script: Path) -> set[str]:
    """Those that a run.sh's --help lists."""
    done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^  (--[a-z][a-z-]*) ", done.stdout, re.MULTILINE)) | {"--help"}


def check(command: Command) -> None:
    """AssertionError, or argparse's SystemExit with its message, for a command that would not be understood."""
    words = command.words
    verb = next((word for word in words if word.startswith("steermoe.bin.")), "").removeprefix("steermoe.bin.")
    if not verb and "steermoe" in words[:3] and words[-1] != "steermoe":
        verb = words[words.index("steermoe") + 1]
        words = words[words.index("steermoe") :]
    script = command.folder / words[0]
    if verb:
        verb = verb.replace("-", "_")
        assert verb in verbs(), f"no verb {verb}"
        names = [word.removeprefix("steermoe.bin.").replace("-", "_") for word in words]
        parse_verb(verb, words[names.index(verb) + 1 :])
    elif words[0].endswith("run.sh"):
        assert script.is_file() or words[0].startswith("exp/"), f"no {words[0]} in {command.folder}"
        if script.is_file():
            options = [word for word in words[1:] if word.startswith("--") and "." not in word]
            unknown = {option.replace("_", "-") for option in options} - script_options(script)
            assert not unknown, f"{words[0]} does not know {unknown}"
            check_keys(words[1:])
    elif script.suffix == ".sh" and script.is_relative_to(ROOT / "utils"):
        assert script.is_file(), f"no {words[0]} in {command.folder}"
        called = re.search(r"-m steermoe\.bin\.(\w+)((?: \w+)*) \"\$@\"", script.read_text())
        parse_verb(called[1], [*called[2].split(), *words[1:]])
    elif script.suffix in (".sh", ".py") or words[0] == "bash":
        assert (command.folder / next(word for word in words if word != "bash")).is_file(), words
    else:
        name = Path(words[0]).name
        assert name in OTHERS or name.startswith(("$python", "python", "torchrun", "srun")), f"no such program: {words[0]}"


def parse_verb(verb: str, words: list[str]) -> None:
    words = [word for word in words if not re.fullmatch(r"\d*[<>]+.*", word)]
    try:
        importlib.import_module(f"steermoe.bin.{verb}").main(words)
    except Parsed:
        pass


@pytest.mark.parametrize("block", [block for block in BLOCKS + README_BLOCKS if block.language in SHELL], ids=ids)
def test_every_command_is_understood(block, only_parse):
    """A verb, script or program that is not there, an option that its parser does not know and an unknown key break this."""
    if block.page in READMES and block.language != "bash":
        return
    for command in read_commands(block.text):
        try:
            check(command)
        except (AssertionError, SystemExit, UserError) as error:
            pytest.fail(f"{block.where}: {shlex.join(command.words)}: {error}")


@pytest.mark.parametrize(
    "text",
    [
        "cd egs/own && ./run.sh --corpsu x", "cd egs/none && ./run.sh", "python -m steermoe.bin.decod --exp x",
        "$python -m steermoe.bin.transcribe --modle x a.wav", "cd egs/own && ./run.sh --train-conf.max-stepz 3",
        "$python -m steermoe.bin.train --train a --dev b --exp c --train-conf.max-steps many", "utils/no_such.sh data/x",
        "utils/validate_data_dir.sh --no-feets data/x", "frobnicate", "steermoe transcribe --model x",
    ],
)  # fmt: skip
def test_mistakes_are_found(text, only_parse):
    with pytest.raises((AssertionError, SystemExit, UserError)):
        for command in read_commands(text):
            check(command)


OPTIONS_OF_OTHERS = {  # of tools/test.sh, tensorboard, utils/run_local.sh and sbatch
    "--slow", "--network", "--logdir", "--max-jobs-run", "--mem", "--requeue", "--signal", "--partition", "--time",
}  # fmt: skip


@pytest.fixture(scope="module")
def all_options() -> set[str]:
    """Of every recipe's run.sh and every verb."""
    known = set(OPTIONS_OF_OTHERS)
    for script in (ROOT / "egs").glob("*/run.sh"):
        known |= script_options(script)

    def collect(self, *_):
        known.update(self._option_string_actions)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_known_args", collect)
        plain = [[verb] for verb in verbs() if verb != "data_dir"]
        for words in plain + [["data_dir", command] for command in data_dir.COMMANDS]:
            try:
                importlib.import_module(f"steermoe.bin.{words[0]}").main(words[1:])
            except Parsed:
                pass
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_key_named_in_the_text_exists(page, all_options):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", code):
            assert known_key(option[2:].replace("-", "_")) if "." in option else option in all_options, f"{page.name}: {option}"
        for key in re.findall(r"(?<![\w.-])([a-z]+_conf\.[a-z_.]+)", code):
            assert known_key(key), f"{page.name}: {key}"


# Running them


@pytest.fixture()
def checkout(tmp_path) -> Path:
    """A copy with what the pages speak of: note.wav, question.wav, and recordings of several speakers with their texts."""
    folder = tmp_path / "steermoe"
    shutil.copytree(ROOT / "egs", folder / "egs", ignore=shutil.ignore_patterns(*MADE))
    for name in ("utils", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "steermoe").symlink_to(ROOT / "steermoe")
    (folder / "tools").mkdir()
    # tests/test_setup.py has the real one.
    (folder / "tools/setup.sh").write_text(f"#!/bin/sh\necho {shlex.quote(sys.executable)}\n")
    (folder / "tools/setup.sh").chmod(0o755)
    words = ("one", "two", "three", "press", "star", "hello", "world")
    for name in ("note", "question"):
        soundfile.write(folder / f"{name}.wav", speak([1, 2, 3]), 16000, subtype="FLOAT")
    for speaker in range(4):
        for number in range(3):
            path = folder / "recordings" / f"speaker{speaker}" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speak([1 + (speaker + number) % 6, 1 + number]), 16000)
            path.with_suffix(".txt").write_text(f"{words[(speaker + number) % 7]} {words[number]}\n")
    return folder


def run_shell(block: Block, folder: Path, command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(["bash", "-c", f"set -eo pipefail\n{command}"], cwd=folder, env=environment, **settings)
    assert done.returncode == 0, f"{block.where}\n{done.stderr[-3000:]}{done.stdout[-1000:]}"


def run_for_real(page: Path, folder: Path, kinds: tuple[str, ...]) -> None:
    """The page's blocks of these kinds in their order, each from the checkout's root."""
    for block in (block for block in read_blocks(page) if block.when in kinds):
        if block.language == "python":
            (folder / "block.py").write_text(block.text)
            run_shell(block, folder, f"{shlex.quote(sys.executable)} block.py")
        else:
            run_shell(block, folder, re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE))


def pages_with(when: str) -> list[Path]:
    return [page for page in PAGES if any(block.page == page and block.when == when for block in BLOCKS)]


@pytest.fixture()
def tiny_adapter(checkout, tiny_model, tiny_config, monkeypatch) -> None:
    """In place of the one that comes with the code, in the copy of the checkout."""
    from steermoe.checkpoint import save_adapter

    monkeypatch.setattr(pretrained, "FOLDER", checkout / "tiny")
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(checkout)
    save_adapter(checkout / "tiny/adapter.safetensors", tiny_model, tiny_config, 1, {})


ENCODER = ROOT / "docs" / "own_encoder.md"


@pytest.mark.parametrize("page", [page for page in pages_with("quick") if page != ENCODER], ids=lambda page: page.name)
def test_quick_blocks_run(page, checkout, tiny_adapter):
    run_with_tiny_model(page, checkout)


def run_with_tiny_model(page: Path, checkout: Path) -> None:
    """The page's quick blocks in their order; those in Python in this process, which has loaded torch already."""
    for block in (block for block in read_blocks(page) if block.when == "quick"):
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
        else:
            run_shell(block, checkout, re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE))


def test_the_front_page_s_python_runs(checkout, tiny_adapter):
    """With what its text speaks of: a.wav, samples, chunks."""
    shutil.copy("note.wav", "a.wav")
    samples = speak([1, 2]).astype(np.float32)
    names = {"samples": samples, "chunks": [samples], "Path": Path}
    blocks = [block for block in README_BLOCKS if block.language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block.text, block.where, "exec"), names)


def test_the_encoder_of_its_page_is_one(checkout, tiny_adapter, tiny_config):
    """Its blocks run; a model is made with it by the lines that the page gives, and reads."""
    from steermoe import SteerMoE
    from steermoe.model import SteerMoE as Network

    run_with_tiny_model(ENCODER, checkout)
    lines = next(text for text in re.findall(r"```yaml\n(.*?)```", ENCODER.read_text(), re.DOTALL) if "my_encoder" in text)
    tree = tiny_config.to_dict() | yaml.safe_load(lines.replace("../../", ""))
    config = config_from_dict(tree)
    network = Network.from_config(config)
    texts = SteerMoE(network, config).transcribe([speak([1, 2]), speak([3])])
    assert len(texts) == 2 and len(network.encoder.fingerprint) == 64


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"), ids=lambda page: page.name)
def test_slow_blocks_run(page, checkout, real_models):
    run_for_real(page, checkout, ("quick", "slow"))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("page", pages_with("network"), ids=lambda page: page.name)
def test_blocks_that_fetch_run(page, checkout):
    run_for_real(page, checkout, ("network",))
