"""The model of a configuration on torch's meta device: all its shapes, none of its weights, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from steermoe.config import Config
from steermoe.data.features import SAMPLE_RATE
from steermoe.dtypes import resolve_dtype
from steermoe.errors import UserError
from steermoe.fetch import MADE_HERE, on_disk
from steermoe.model import SteerMoE
from steermoe.registry import nearest, resolve

SIZES = Path(__file__).with_name("sizes.yaml")


def known_sizes(model: str) -> dict[str, Any]:
    """An entry of sizes.yaml. UserError names the known models."""
    table = yaml.safe_load(SIZES.read_text(encoding="utf-8"))
    if model.startswith(MADE_HERE):
        raise UserError(f"{model}: stage 3 of the recipe makes it and prints the same table then: ./run.sh --stage 3 --stop-stage 3")
    if model not in table:
        raise UserError(f"{model}: not on this disk, and its sizes are not known either{nearest(model, list(table))}; give a folder")
    return table[model]


def meta_model(config: Config, encoder: nn.Module | None = None) -> SteerMoE:
    """Models on this disk tell their sizes themselves, others have them in sizes.yaml. encoder: one that has been loaded already."""
    encoder = encoder or meta_encoder(config)
    llm = resolve("llm", config.llm)
    if not hasattr(llm, "without_weights"):
        raise UserError(f"llm: {config.llm} does not say its sizes without its weights; the memory cannot be told in advance")
    path = on_disk(config.llm_conf["model"], kind="llm")
    llm = llm.without_weights(path or known_sizes(config.llm_conf["model"]), **config.llm_conf)
    with torch.device("meta"):
        steering = resolve("steering", config.steering)(encoder.num_layers, encoder.dim, **config.steering_conf)
        projector = resolve("projector", config.projector)(encoder.dim, llm.dim, **config.projector_conf)
    return SteerMoE(encoder.to("meta"), steering, projector, llm)


def meta_encoder(config: Config) -> nn.Module:
    encoder = resolve("encoder", config.encoder)
    if on_disk(config.encoder_conf["model"], kind="encoder"):
        return encoder.from_pretrained(**config.encoder_conf)
    sizes = known_sizes(config.encoder_conf["model"])
    try:
        with torch.device("meta"):
            made = encoder(**sizes, **config.encoder_conf)
    except TypeError:
        raise UserError(f"encoder_conf.model: {config.encoder_conf['model']} is no model for encoder {config.encoder!r}") from None
    return made.requires_grad_(False).eval().to(resolve_dtype(made.dtype))


def longest_feats(config: Config) -> tuple[int, int]:
    """(F, M) of the features of an utterance of data_conf.max_seconds."""
    model, seconds = config.encoder_conf["model"], config.data_conf.max_seconds
    if on_disk(model, kind="encoder"):
        frontend = resolve("encoder", config.encoder).frontend(model)
        return tuple(frontend(torch.zeros(round(seconds * SAMPLE_RATE))).shape)
    return round(seconds * 100), known_sizes(model).get("n_mels", 80)
