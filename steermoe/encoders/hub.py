"""What the encoders of transformers have in common: loading, freezing, and steering from outside.

transformers' own modules compute everything. A forward hook on every layer gives its output to `steer` and puts what comes back
in its place, so the next layer reads it (equation 3 of SteerMoE).

Shape legend: B batch, F input frames, M input feature size, T encoder frames, D encoder width, N samples.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch.nn.functional as nnf
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steermoe.data.features import SAMPLE_RATE
from steermoe.dtypes import resolve_dtype
from steermoe.encoders.base import Frontend, Steer, no_steer
from steermoe.errors import UserError
from steermoe.fetch import find_model, fingerprint
from steermoe.masks import length_mask
from steermoe.registry import ROLES, resolve

# What a checkpoint may ask for and a frozen encoder never uses: its weights are not needed, and often not there.
UNUSED = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "add_adapter": False, "use_intermediate_ffn_before_adapter": False}


class HubEncoder(nn.Module, ABC):
    """dtype: "auto", "bfloat16", "float16" or "float32".

    A subclass says which checkpoints it reads (`architecture`, `model_types`), what they are fed (`make_frontend`, `run`), how
    long their output is (`frame_lengths`), and where it is not this, `layers`, `final_norm` and `hooks`.
    """

    architecture: str  # transformers' class without a head
    model_types: tuple[str, ...]  # `model_type` in the config.json of checkpoints that hold it, with a head or without
    min_frames = 0

    def __init__(self, network: nn.Module, *, model: str, dtype: str = "auto"):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()
        self.model, self.dtype = model, dtype
        self.dim, self.num_layers = network.config.hidden_size, network.config.num_hidden_layers
        self.fingerprint = ""

    @classmethod
    def frontend(cls, model: str) -> Frontend:
        path = find_model(model, kind="encoder")
        return cls.make_frontend(path, cls.read_config(path))

    @classmethod
    def from_pretrained(cls, model: str, *, dtype: str = "auto") -> "HubEncoder":
        """model: local folder or hub id with safetensors weights. A head, an adapter or a decoder in it is left alone."""
        import transformers

        path = find_model(model, kind="encoder")
        config = cls.read_config(path)
        for key, value in UNUSED.items():
            if hasattr(config, key):
                setattr(config, key, value)
        try:
            with _quiet():
                network, report = getattr(transformers, cls.architecture).from_pretrained(
                    path,
                    config=config,
                    dtype=resolve_dtype(dtype),
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are an error below, with a name
                    output_loading_info=True,
                )
            sha256 = fingerprint(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"encoder_conf.model: {path} has no safetensors weights that can be read ({error}); pickled ones "
                "(pytorch_model.bin) never are: save the model with transformers' save_pretrained first"
            ) from None
        if wrong := sorted(report["missing_keys"]) + sorted(str(key) for key, *_ in report["mismatched_keys"]):
            raise UserError(f"encoder_conf.model: {path} lacks the weights {wrong[0]} ({len(wrong)} in all); copy it again")
        encoder = cls(network, model=model, dtype=dtype)
        encoder.fingerprint = sha256
        return encoder

    @classmethod
    def read_config(cls, path: Path) -> Any:
        """transformers' configuration of the encoder in the folder. UserError if it holds another architecture."""
        from transformers import AutoConfig

        try:
            kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"encoder_conf.model: {path} is not a folder with a config.json as transformers writes it") from None
        if kind not in cls.model_types:
            raise UserError(f"encoder_conf.model: {path} holds a {kind!r} model, not {cls.model_types[0]!r}; {_remedy(kind)}")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return getattr(config, "encoder_config", config)

    @classmethod
    @abstractmethod
    def make_frontend(cls, path: Path, config: Any) -> Frontend:
        """The features of the checkpoint in folder `path`, whose configuration is `config`."""

    @abstractmethod
    def frame_lengths(self, feat_lens_b: Tensor) -> Tensor:
        """(B,) int64 input frames -> (B,) int64 encoder frames."""

    def run(self, feats_bfm: Tensor, mask_bf: Tensor) -> None:
        """One forward of `network`. mask_bf: True on real frames; feats_bfm is 0 elsewhere."""
        self.network(input_features=feats_bfm, attention_mask=mask_bf.long())

    @property
    def layers(self) -> nn.ModuleList:
        return self.network.encoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return nn.Identity()

    def hooks(self, feat_lens_b: Tensor) -> Iterator[RemovableHandle]:
        """Hooks for one forward that keep padding out where transformers lets it in."""
        yield from ()

    def forward(self, feats_bfm: Tensor, feat_lens_b: Tensor, steer: Steer = no_steer) -> tuple[Tensor, Tensor]:
        """feats_bfm (B, F, M) float, right-padded with anything; feat_lens_b (B,) int64 -> hidden_btd (before `final_norm`,
        in the encoder's dtype), lens_b (B,) int64.
        """
        mask_bf = length_mask(feat_lens_b, feats_bfm.shape[1])
        feats_bfm = feats_bfm.masked_fill(~mask_bf[..., None], 0.0).to(self.network.dtype)
        hidden_btd = feats_bfm

        def steered(index: int):
            def hook(layer: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
                nonlocal hidden_btd
                if isinstance(output, tuple):  # WavLM's layers hand on their position bias too
                    hidden_btd = steer(index, output[0])
                    return hidden_btd, *output[1:]
                hidden_btd = steer(index, output)
                return hidden_btd

            return hook

        with ExitStack() as stack:
            for handle in self.hooks(feat_lens_b):
                stack.enter_context(handle)
            for index, layer in enumerate(self.layers):
                stack.enter_context(layer.register_forward_hook(steered(index)))
            self.run(feats_bfm, mask_bf)
        return hidden_btd, self.frame_lengths(feat_lens_b)


def conv_lengths(lens_b: Tensor, kernels: Sequence[int], strides: Sequence[int], padding: int = 0) -> Tensor:
    """Lengths after a stack of convolutions with `padding` zeros on either side: (B,) int64 -> (B,) int64, never below 0."""
    for kernel, stride in zip(kernels, strides, strict=True):
        lens_b = ((lens_b + 2 * padding - kernel) // stride + 1).clamp(min=0)
    return lens_b


def load_extractor(name: str, path: Path) -> Any:
    """transformers' feature extractor of class `name` with the settings of the checkpoint. UserError if they are not there."""
    import transformers

    try:
        extractor = getattr(transformers, name).from_pretrained(path)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: no preprocessor_config.json that can be read; it says what the model hears: copy it") from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(f"{path}: the model reads {extractor.sampling_rate} Hz; audio here has {SAMPLE_RATE} Hz")
    return extractor


def at_least(samples_n: Tensor, size: int) -> Tensor:
    """Zeros behind a waveform that is too short for a single frame."""
    return nnf.pad(samples_n, (0, max(0, size - len(samples_n))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' list of the head's weights, which are left out on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _remedy(kind: str) -> str:
    """Which `encoder:` reads checkpoints of this model_type."""
    for name in ROLES["encoder"]:
        try:
            kinds = getattr(resolve("encoder", name), "model_types", ())
        except UserError:  # a package of that encoder is not installed
            kinds = ()
        if kind == name or kind in kinds:
            return f"set encoder: {name}"
    return f"no encoder here reads it (there are {', '.join(ROLES['encoder'])})"
