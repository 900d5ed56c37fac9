"""Training that starts at the tensors of a trained adapter: `--init pretrained`, or an experiment folder, a package, a file.

As an option, `--init` is also a layer of the configuration: what makes the adapter what it is comes from there, over the recipe's
file: steering, projector, objective, augmentation, prompt, how the frozen models are fed, how it is decoded. The frozen models
themselves, what is scored, and how long and how fast to train stay the recipe's. The key `init` alone takes the tensors.
"""

from __future__ import annotations

import re
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from steermoe.checkpoint import check_bases, decode_conf_of, read_metadata
from steermoe.config import Config, differences
from steermoe.errors import UserError
from steermoe.fetch import catalog
from steermoe.model import SteerMoE
from steermoe.pretrained import find_adapter

KEPT = {  # of the recipe, where the rest comes from the adapter
    "encoder_conf": ("model", "dtype"),
    "llm_conf": ("model", "dtype", "quantization"),
    "decode_conf": ("unit", "normalizer", "batch_frames", "max_batch"),
}
ENDS_A_BRANCH = re.compile(r"\.(mix|down)\.(weight|bias)$")  # of steermoe.conv_projector.ConvBlock
ADAPTER_KEYS = ("steering", "steering_conf", "projector", "projector_conf")


def init_layer(init: str, below: dict[str, Any]) -> dict[str, Any]:
    """The keys that a configuration takes over from an adapter. below: the layers under it. UserError if it is of other roles."""
    path = find_adapter(init)
    config = read_metadata(path)[0]
    trained = config.to_dict() | {"decode_conf": vars(decode_conf_of(path, config))}
    layer = {key: trained[key] for key in (*ADAPTER_KEYS, "objective", "objective_conf", "augment_conf")}
    for role in ("encoder", "llm"):
        if (here := below.get(role, getattr(Config(), role))) != trained[role]:
            raise UserError(f"--init {init}: trained with {role}: {trained[role]}, this configuration has {role}: {here}")
    for group, kept in KEPT.items():
        layer[group] = {key: value for key, value in trained[group].items() if key not in kept}
    return layer | {"data_conf": {"prompt": trained["data_conf"]["prompt"]}, "init": init}


def check_names(config: Config) -> None:
    """UserError if a frozen model is surely another one than the adapter's; their weights are compared when they are loaded."""
    trained, known = read_metadata(find_adapter(config.init))[0], catalog()
    for role in ("encoder_conf", "llm_conf"):
        theirs, here = (str(getattr(one, role)["model"]) for one in (trained, config))
        if theirs != here and {theirs, here} <= known.keys():
            raise UserError(f"--init {config.init}: trained with {role}.model: {theirs}, this configuration has {here}")


def start_at(model: SteerMoE, config: Config) -> None:
    """Gives `model` the tensors of the adapter `config.init`, if there is one. UserError names what does not agree."""
    if not config.init:
        return
    path = find_adapter(config.init)
    trained, metadata = read_metadata(path)
    check_bases(path, metadata, model, "start at an adapter of these, or give the right ones with --encoder-model and --llm")
    tensors = deeper(load_file(path), model.adapter_state())
    if shapes(tensors) != shapes(model.adapter_state()):
        theirs, ours = ({key: one.to_dict()[key] for key in ADAPTER_KEYS} for one in (trained, config))
        changed = "; ".join(differences(theirs, ours)) or "made by another version of the code"
        raise UserError(f"init {config.init}: of another shape ({changed}); as an option, --init takes its settings too")
    model.load_adapter_state(tensors)


def deeper(trained: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """`trained` with the blocks of convolutions that only the new model has (more `blocks`): fresh ones, which at first add nothing
    to what passes through, as the last layers of their two branches are 0.
    """
    added = {name: tensor for name, tensor in fresh.items() if name not in trained and ".blocks." in name}
    return trained | {name: tensor * 0 if ENDS_A_BRANCH.search(name) else tensor for name, tensor in added.items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
