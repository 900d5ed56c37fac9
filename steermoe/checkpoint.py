"""Adapter checkpoints: one safetensors file of a few MB that holds the trained tensors and names and hashes its frozen bases.

The file's metadata has one key, `steermoe`, a JSON object: format, config, encoder_sha256, llm_sha256, step, environment.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save

from steermoe.config import Config, DecodeConf, config_from_dict, read_layers
from steermoe.errors import UserError
from steermoe.fetch import MADE_HERE
from steermoe.files import atomic_write
from steermoe.loading import paused_collection
from steermoe.model import SteerMoE
from steermoe.package import home
from steermoe.pretrained import find_adapter

FORMAT = "steermoe-adapter-1"


def save_adapter(path: str | Path, model: SteerMoE, config: Config, step: int, environment: dict) -> None:
    metadata = {
        "format": FORMAT,
        "config": config.to_dict(),
        **{f"{role}_sha256": value for role, value in model.bases().items()},
        "step": step,
        "environment": environment,
    }
    write_adapter(path, model.adapter_state(), metadata)


def write_adapter(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """tensors: float32, by name; metadata: as `read_metadata` gives it."""
    with atomic_write(path, "wb") as stream:
        stream.write(save(tensors, {"steermoe": json.dumps(metadata, ensure_ascii=False, sort_keys=True)}))


def read_metadata(path: Path) -> tuple[Config, dict]:
    """The configuration and the other metadata of an adapter file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("steermoe", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy it again") from None
    if metadata.get("format") != FORMAT or not {"config", "encoder_sha256", "llm_sha256"} <= metadata.keys():
        raise UserError(f"{path}: not an adapter of this toolkit (format {metadata.get('format')!r}, {FORMAT!r} needed)")
    return config_from_dict(metadata["config"], str(path), registered=os.environ.get("STEERMOE_ALLOW_CODE") != "1"), metadata


def decode_conf_of(adapter: Path, config: Config) -> DecodeConf:
    """How an adapter decodes: decode_conf of the config.yaml of its folder, which may have been edited since training, else as it
    was trained with. Nothing else is read from that file: a stranger's could name code to import.
    """
    edited = home(adapter) / "config.yaml"
    conf = read_layers(edited).get("decode_conf") if edited.is_file() else None
    if conf is None:
        return config.decode_conf
    return config_from_dict(config.to_dict() | {"decode_conf": conf}, str(edited)).decode_conf


def beside(adapter: Path, model: str) -> str:
    """Where an encoder is that a recipe has made itself: exp/NAME, as seen from the recipe's folder, which the adapter is in."""
    if not model.startswith(MADE_HERE):
        return model
    return next((str(folder / model) for folder in adapter.absolute().parents if (folder / model).exists()), model)


@paused_collection()
def load_model(
    path: str | Path, device: str = "cpu", encoder_model: str | None = None, llm_model: str | None = None, dtype: str | None = None
) -> tuple[SteerMoE, Config]:
    """The whole model of an adapter, to decode with: in eval mode, and on a CPU its LLM lets no gradients through (llms.packed).

    encoder_model, llm_model: where the frozen bases are, instead of where training found them; dtype: for both bases, instead
    of the configuration's. Its decode_conf is that of `decode_conf_of`. UserError if a base is not the one that the adapter was
    trained on.
    """
    path = find_adapter(path)
    config, metadata = read_metadata(path)
    config.decode_conf = decode_conf_of(path, config)
    config.encoder_conf["model"] = encoder_model or beside(path, config.encoder_conf["model"])
    config.llm_conf["model"] = llm_model or config.llm_conf["model"]
    if dtype:
        config.encoder_conf["dtype"] = config.llm_conf["dtype"] = dtype
    model = SteerMoE.from_config(config, device)
    check_bases(path, metadata, model, "give the right one with --{role}-model DIR")
    try:
        model.load_adapter_state(load_file(path, device=device))
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit its configuration ({error}); copy it again") from None
    model.llm.pack()
    return model.eval(), config


def check_bases(path: Path, metadata: dict, model: SteerMoE, fix: str) -> None:
    """UserError if a frozen model is not the one that the adapter was trained on; fix: what to do about `{role}`."""
    for role, found in model.bases().items():
        if (known := metadata[f"{role}_sha256"]) != found:
            raise UserError(
                f"{path}: trained on another {role} than {getattr(model, role).model!r} (SHA-256 of the weights {known[:12]}…, found "
                f"{found[:12]}…); {fix.format(role=role)}"
            )


def save_resume(path: str | Path, state: dict) -> None:
    """The trainer's whole state in one file, so that it is never older or newer than the adapter in it."""
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind an internal error
    torch.save(state, buffer)
    with atomic_write(path, "wb") as stream:
        stream.write(buffer.getbuffer())


def load_resume(path: str | Path) -> dict:
    """Runs no code from the file (weights_only)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a readable training state ({error}); remove it to train from the start") from None
