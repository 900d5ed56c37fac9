"""The configuration of an experiment: ESPnet's form, a role's name and its constructor's keywords, typed and checked.

Every key is known: an unknown one is an error that names the nearest. Any key can be overridden on the command line by its
path: `--train-conf.max-steps 100`, `--optim-conf.lr.router 1e-3`, `--projector linear`. Layers, each over the one before: a
recipe's file, a preset (steermoe/presets/NAME.yaml: the paper's models and settings), its variant, the adapter that training
starts at (steermoe.warm_start), the command line.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from steermoe.data.augment import AugmentConf
from steermoe.errors import UserError
from steermoe.files import atomic_write, read_lines
from steermoe.registry import ROLES, keywords, nearest, resolve


@dataclass
class DataConf:
    """Stage 2: what is kept, and what the LLM is asked."""

    prompt: str = "please transcribe the audio content into text: "  # `<audio>` in it says where the audio goes; default: in front
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    min_tokens: int = 1
    max_tokens: int = 448


@dataclass
class OptimConf:
    """AdamW. Weight decay never touches expert vectors, scales and biases."""

    lr: dict[str, float] = field(default_factory=lambda: {"projector": 1e-4, "steering": 1e-2, "router": 1e-3})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    warmup_steps: int = 100
    schedule: str = "constant"  # constant | linear | cosine, after the warm-up


@dataclass
class TrainConf:
    max_steps: int = 1000  # optimiser steps
    batch_frames: int = 12000  # input frames (100 a second) in a padded batch
    max_batch: int = 64  # utterances in a batch
    accum_grad: int = 1  # batches in an optimiser step
    grad_clip: float = 1.0
    valid_steps: int = 100  # steps between validations; each one also writes a resumable checkpoint
    save_steps: int = 50  # steps between resumable checkpoints
    patience: int = 0  # validations without improvement before an early stop; 0: never
    seed: int = 1
    num_threads: int = 0  # CPU threads; 0: torch's choice
    heard_versions: int = 0  # with steering and router at rate 0: augmented versions of the data, of which the encoder's output is kept


@dataclass
class DecodeConf:
    beam: int = 1  # 1: greedy
    length_penalty: float = 1.0  # beam search: score / length ** penalty
    ctc_weight: float = 0.0  # with the projector `token`: 0 the LLM alone, 1 CTC alone, between them joint beam search
    ctc_temperature: float = 1.0  # joint search: CTC's scores are divided by it before the softmax; over 1 it is less sure of itself
    min_confidence: float = 0.0  # where CTC hears its units with a lower mean probability, nobody has spoken: the answer is empty
    context: str = ""  # joint search: the LLM goes on from this text, as a language model that does not see the audio; "": the prompt
    unheard: str = ""  # joint search: marks, of any script, that the LLM may write and CTC does not hear; with any, letters' case is the LLM's too
    batch_frames: int = 24000
    max_batch: int = 32
    max_tokens: int = 448
    max_tokens_per_second: float = 12.0  # an answer is at most this times the audio's length plus 10 tokens; 0: no such limit
    max_repeats: int = 4  # copies of one phrase in a row that end an answer; 0: no guard
    unit: str = "word"  # word | char | answer: what stage 5 scores; answer: right or wrong as a whole (bin/score_answers.py)
    normalizer: str = "english"  # none | english | chinese: what stage 5 applies to references and hypotheses first


@dataclass
class Config:
    init: str = ""  # adapter whose tensors training starts at: `pretrained`, an experiment folder, a package, a file; "": random ones
    encoder: str = "whisper"
    encoder_conf: dict[str, Any] = field(default_factory=lambda: {"model": "whisper-tiny.en"})
    steering: str = "moe"
    steering_conf: dict[str, Any] = field(default_factory=dict)
    projector: str = "linear"
    projector_conf: dict[str, Any] = field(default_factory=dict)
    llm: str = "causal"
    llm_conf: dict[str, Any] = field(default_factory=lambda: {"model": "SmolLM2-135M-Instruct"})
    objective: str = "next_token"
    objective_conf: dict[str, Any] = field(default_factory=dict)
    data_conf: DataConf = field(default_factory=DataConf)
    augment_conf: AugmentConf = field(default_factory=AugmentConf)
    optim_conf: OptimConf = field(default_factory=OptimConf)
    train_conf: TrainConf = field(default_factory=TrainConf)
    decode_conf: DecodeConf = field(default_factory=DecodeConf)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        with atomic_write(path) as stream:
            yaml.safe_dump(self.to_dict(), stream, sort_keys=False, allow_unicode=True)


ROLE_KEYS = ("encoder", "steering", "projector", "llm", "objective")


PRESETS = Path(__file__).with_name("presets")
PAPER = "paper"  # the variant that a preset is without another


def load_config(
    path: str | Path | None, overrides: list[str] | None = None, preset: str | None = None, variant: str = PAPER, init: str = ""
) -> Config:
    """path: a YAML file (None: the defaults). overrides: words as they came, ["--train-conf.seed", "2", …]. preset: W7B, C3B or
    C7B, over the file. init: a trained adapter, its settings over both. UserError names the file and the nearest known key, or the
    value that does not fit its type.
    """
    tree = read_layers(path, preset, variant)
    if init:
        from steermoe import warm_start  # needs torch, as nothing else here does

        tree = _over(tree, warm_start.init_layer(init, tree))
    for key, value in parse_overrides(overrides or []):
        _set(tree, key, value)
    config = config_from_dict(tree, str(path or "configuration") + (f" with --preset {preset}" if preset else ""))
    if init:
        warm_start.check_names(config)
    return config


def load_as(cls: type, path: str | Path, overrides: list[str] | None = None) -> Any:
    """A dataclass of one's own from a YAML file and overrides, typed and checked as Config is."""
    tree = _read_yaml(path)
    for key, value in parse_overrides(overrides or []):
        _set(tree, key, value)
    return _build(cls(), tree, str(path), "")


def read_layers(path: str | Path | None, preset: str | None = None, variant: str = PAPER) -> dict[str, Any]:
    """The file's keys with the preset's and the variant's over them, not yet checked."""
    files = [path] if path is not None else []
    if preset:
        files.append(_preset_file(PRESETS, preset, "preset"))
    if variant != PAPER:
        files.append(_preset_file(PRESETS / "variants", variant, "variant", [PAPER]))
        if not preset:
            raise UserError(f"--variant {variant} is a variant of a preset; give --preset too")
    tree: dict[str, Any] = {}
    for file in files:
        tree = _over(tree, _read_yaml(file))
    return tree


def _preset_file(folder: Path, name: str, what: str, others: list[str] | None = None) -> Path:
    known = sorted(file.stem for file in folder.glob("*.yaml")) + (others or [])
    if name not in known:
        raise UserError(f"--{what} {name}: there is none of this name{nearest(name, known)}")
    return folder / f"{name}.yaml"


def _read_yaml(path: str | Path) -> dict[str, Any]:
    text = "\n".join(line for _, line in read_lines(path))
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)}); check the indentation there") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a list of `key: value` lines")
    return tree


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Key by key; but who names a role (`encoder: …`) brings its keywords too, and none of those below are kept."""
    merged = dict(below)
    for key, value in above.items():
        new_role = key.removesuffix("_conf") in ROLE_KEYS and key.removesuffix("_conf") in above
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _over(below[key], value) if both and not new_role else value
    return merged


def config_from_dict(tree: dict[str, Any], where: str = "configuration", registered: bool = False) -> Config:
    """A checked Config from plain dicts; `where` names the source in errors.

    registered: accept only the registry's names for roles: files from others must not choose which Python modules are imported.
    """
    config = _build(Config(), tree, where, "")
    config.augment_conf.check(where)
    for role in ROLE_KEYS:
        if registered and (name := getattr(config, role)) not in ROLES[role]:
            raise UserError(f"{where}: {role} {name!r} is code outside this toolkit; if you trust both, set STEERMOE_ALLOW_CODE=1")
        _check_role(config, role, where)
    for group in config.optim_conf.lr:
        if group not in ("projector", "steering", "router"):
            raise UserError(f"{where}: unknown key optim_conf.lr.{group}{nearest(group, ['projector', 'steering', 'router'])}")
    check_training(config.optim_conf, config.train_conf, where)
    for key, least in (("beam", 1), ("max_tokens", 1), ("max_batch", 1), ("max_repeats", 0)):
        if getattr(config.decode_conf, key) < least:
            raise UserError(f"{where}: decode_conf.{key}: {getattr(config.decode_conf, key)} is below {least}")
    if any(map(str.isalnum, config.decode_conf.unheard)):
        raise UserError(f"{where}: decode_conf.unheard: {config.decode_conf.unheard!r} are not all punctuation marks")
    if not config.decode_conf.ctc_temperature > 0:
        raise UserError(f"{where}: decode_conf.ctc_temperature: {config.decode_conf.ctc_temperature} is not over 0")
    for key in ("ctc_weight", "min_confidence"):
        if not 0 <= getattr(config.decode_conf, key) <= 1:
            raise UserError(f"{where}: decode_conf.{key}: {getattr(config.decode_conf, key)} is not from 0 to 1")
    if not hasattr(resolve("projector", config.projector), "hear"):
        asked = {f"objective: {config.objective}": config.objective == "joint"}
        asked["decode_conf.ctc_weight"] = config.decode_conf.ctc_weight > 0
        asked["decode_conf.min_confidence"] = config.decode_conf.min_confidence > 0
        if needs := [key for key, needed in asked.items() if needed]:
            raise UserError(f"{where}: {needs[0]} needs CTC, which the projector {config.projector!r} has not; set `projector: token`")
    return config


def check_training(optim_conf: OptimConf, train_conf: TrainConf, where: str) -> None:
    """UserError that begins with `where` and names the key whose value is out of its range."""
    if optim_conf.schedule not in ("constant", "linear", "cosine"):
        raise UserError(f"{where}: optim_conf.schedule: {optim_conf.schedule!r} is not constant, linear or cosine")
    positive = {"optim_conf.lr": min(optim_conf.lr.values()), "train_conf.grad_clip": train_conf.grad_clip}
    positive |= {"train_conf.num_threads": train_conf.num_threads, "optim_conf.warmup_steps": optim_conf.warmup_steps}
    positive["train_conf.heard_versions"] = train_conf.heard_versions
    if bad := [f"{key}: {value}" for key, value in positive.items() if value < 0]:
        raise UserError(f"{where}: {bad[0]} is below 0")
    if len(optim_conf.betas) != 2:
        raise UserError(f"{where}: optim_conf.betas: {optim_conf.betas} are not two numbers")
    for key in ("max_steps", "valid_steps", "save_steps", "accum_grad", "max_batch"):
        if getattr(train_conf, key) < 1:
            raise UserError(f"{where}: train_conf.{key}: {getattr(train_conf, key)} is below 1")
    if train_conf.heard_versions and (optim_conf.lr.get("steering") or optim_conf.lr.get("router")):
        raise UserError(
            f"{where}: train_conf.heard_versions: {train_conf.heard_versions}: what the encoder makes of the data changes while "
            "steering is trained; set optim_conf.lr.steering and optim_conf.lr.router to 0"
        )


def _check_role(config: Config, role: str, where: str) -> None:
    """A role's `_conf` against the keywords of its constructor: names, types, what is missing; fills in the defaults."""
    known, given = keywords(role, getattr(config, role)), getattr(config, f"{role}_conf")
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {role}_conf.{key}{nearest(key, list(known))}")
        if isinstance(known[key], (bool, int, float, str)):
            given[key] = _typed(value, known[key], where, f"{role}_conf.{key}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{where}: {role}_conf.{key} is missing; {role} {getattr(config, role)!r} needs it")
        given.setdefault(key, default)


def differences(before: dict, now: dict, may_change: tuple[str, ...] = (), prefix: str = "") -> list[str]:
    """Keys whose values differ, as text: ["train_conf.seed was 1, is 2"]. may_change: paths of keys that do not count."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        path, old, new = prefix + key, before.get(key), now.get(key)
        if path in may_change or old == new:
            continue
        both = isinstance(old, dict) and isinstance(new, dict)
        found += differences(old, new, may_change, path + ".") if both else [f"{path} was {old}, is {new}"]
    return found


def parse_overrides(words: list[str]) -> list[tuple[list[str], Any]]:
    """["--train-conf.max-steps", "100"] -> [(["train_conf", "max_steps"], 100)]; values are YAML."""
    pairs = []
    for index in range(0, len(words), 2):
        name = words[index]
        if not name.startswith("--") or (index + 1 == len(words)):
            hint = "give it a value" if name.startswith("--") else "options begin with --"
            raise UserError(f"{name}: {hint}, as in --train-conf.max-steps 100")
        value = words[index + 1]
        try:
            parsed = yaml.safe_load(value) if value.strip() else value
        except yaml.YAMLError:
            parsed = value
        quoted = value.lstrip()[:1] in ("'", '"')
        if (isinstance(parsed, str) and not quoted) or (isinstance(parsed, dict) and not value.lstrip().startswith("{")):
            parsed = value  # a text, such as a prompt with a colon or a # in it, as it was typed
        pairs.append((name[2:].replace("-", "_").split("."), parsed))
    return pairs


def _set(tree: dict[str, Any], key: list[str], value: Any) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"--{'.'.join(key)}: {part} has no keys below it")
    tree[key[-1]] = value


def _build(value: Any, tree: Any, where: str, prefix: str) -> Any:
    """A dataclass with its defaults, which the dict's keys replace."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} holds keys, not {tree!r}")
    known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for key, given in tree.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {prefix}{key}{nearest(str(key), list(known))}")
        default = known[key]
        if dataclasses.is_dataclass(default):
            given = _build(default, given if given is not None else {}, where, f"{prefix}{key}.")
        elif isinstance(default, dict):
            given = given if isinstance(given, dict) else _fail(where, prefix + key, given, "keys")
            if key == "lr":
                given = {name: _typed(rate, 1.0, where, f"{prefix}lr.{name}") for name, rate in given.items()}
            role = key.removesuffix("_conf")
            if key == "lr" or tree.get(role, known[role]) == known[role]:  # default keywords are those of the default encoder, LLM, …
                given = default | given
        else:
            given = _typed(given, default, where, prefix + key)
        setattr(value, key, given)
    return value


_KINDS = {"str": "a text", "int": "a whole number", "float": "a number", "list": "a list", "bool": "true or false"}


def _typed(given: Any, default: Any, where: str, key: str) -> Any:
    wanted = type(default)
    if wanted is float and isinstance(given, (int, float, str)) and not isinstance(given, bool):
        try:
            return float(given)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    elif isinstance(given, wanted) and not (wanted is int and isinstance(given, bool)):
        return given
    return _fail(where, key, given, _KINDS[wanted.__name__])


def _fail(where: str, key: str, given: Any, wanted: str) -> Any:
    raise UserError(f"{where}: {key}: {given!r} is not {wanted}")
