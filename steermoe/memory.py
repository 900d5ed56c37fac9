"""The memory of a training step and of decoding, counted before anything is loaded.

Weights: elements times bytes of their type (quantised ones: steermoe.llms.quantization.BYTES). Training: 12 bytes for each trained
parameter, its gradient and AdamW's two moments in float32. Activations: one real step of the longest batch that the configuration
allows is run on the meta device, where tensors have shapes and no contents, and the bytes alive at its worst moment are counted:
what autograd keeps for the backward pass, the masks, the logits. Attention counts as a fused kernel does: queries, keys, values and
result, no T x T scores. Decoding: the larger of that peak while the prompt is read and the full KV cache at the last token.

Not counted: the libraries themselves (CUDA: 0.5 to 1 GB; the CPU: about 0.6 GB), fragmentation (about 10 %), kernels' workspace.
Shape legend: B batch, S text tokens, F input frames, M input feature size.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from steermoe.config import Config
from steermoe.data.collator import Batch
from steermoe.decode.decoder import answer_limit
from steermoe.decode.search import Decoding
from steermoe.llms.quantization import BYTES, quantised_linears
from steermoe.model import SteerMoE
from steermoe.registry import resolve
from steermoe.shapes import longest_feats

TOKENS_PER_SECOND = 4.0  # of fast speech, in an LLM's tokens
PROMPT_TOKENS = 32  # of a chat template with a short prompt in it
AT_ONCE = 12  # bytes: gradient and AdamW's two moments, float32


class Memory(NamedTuple):
    """Bytes. train_batch, decode_batch: utterances of max_seconds in the batch that was counted."""

    weights: int
    optimizer: int
    train_activations: int
    train_batch: int
    decode_activations: int
    decode_batch: int


def module_size(module: nn.Module) -> tuple[int, int]:
    """(parameters, their bytes); quantised weights count as what they stand for, and take what they are stored in."""
    count, size = 0, 0
    quantization = getattr(module, "quantization", "none")
    packed = {id(linear.weight): linear for linear in quantised_linears(module.llm)} if quantization != "none" else {}
    for parameter in module.parameters():
        linear = packed.get(id(parameter))
        number = linear.in_features * linear.out_features if linear is not None else parameter.numel()
        count += number
        size += math.ceil(number * (BYTES[quantization] if linear is not None else parameter.element_size()))
    return count, size


def estimate(model: SteerMoE, config: Config) -> Memory:
    """model: on the meta device (steermoe.shapes.meta_model)."""
    feats_shape = longest_feats(config)
    weights = sum(module_size(part)[1] for part in (model.encoder, model.steering, model.projector, model.llm))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    train, decode = config.train_conf, config.decode_conf
    frames = max(feats_shape[0], model.encoder.min_frames)
    rows = [max(1, min(conf.max_batch, conf.batch_frames // frames)) for conf in (train, decode)]
    unpacked = 0  # a quantised layer's weights exist in full while it computes
    if model.llm.quantization != "none":
        unpacked = max(linear.weight.numel() for linear in quantised_linears(model.llm.llm)) * model.llm.llm.dtype.itemsize
    return Memory(
        weights,
        trained * AT_ONCE,
        _train_peak(model, config, _batch(config, rows[0], feats_shape, answers=True)) + unpacked,
        rows[0],
        _decode_peak(model, config, _batch(config, rows[1], feats_shape, answers=False)) + unpacked,
        rows[1],
    )


def _batch(config: Config, rows: int, feats_shape: tuple[int, int], answers: bool) -> Batch:
    """The longest utterances that data_conf lets through; features on the meta device, lengths and ids real."""
    answer = min(config.data_conf.max_tokens, math.ceil(config.data_conf.max_seconds * TOKENS_PER_SECOND)) if answers else 0
    tokens = PROMPT_TOKENS + answer

    def each(value: int) -> Tensor:
        return torch.full((rows,), value)

    feats_bfm = torch.empty(rows, *feats_shape, device="meta")
    ids_bs = torch.zeros(rows, tokens, dtype=torch.long)
    return Batch(["utt"] * rows, feats_bfm, each(feats_shape[0]), ids_bs, each(tokens), each(0), each(PROMPT_TOKENS))


def _train_peak(model: SteerMoE, config: Config, batch: Batch) -> int:
    objective = resolve("objective", config.objective)(**config.objective_conf)
    with FusedAttention(), LiveBytes(model) as live:
        objective(model.train(), batch).total.backward()
    model.zero_grad()
    return live.peak


def _decode_peak(model: SteerMoE, config: Config, batch: Batch) -> int:
    with torch.no_grad(), FusedAttention(), LiveBytes(model) as live:
        vectors_bqh, layout = model.eval().soft_prompt(batch, left_pad=True)
        decoding = Decoding(model.llm, vectors_bqh, layout)
    tensors = [tensor for layer in decoding.cache.layers for tensor in (layer.keys, layer.values)]
    prompt = vectors_bqh.shape[1]
    per_place = sum(tensor.nbytes for tensor in tensors) / prompt
    longest = prompt + answer_limit(config.data_conf.max_seconds, config.decode_conf)
    # A layer's cache is copied when it grows, so one of them is there twice.
    full = per_place * longest * config.decode_conf.beam * (1 + 2 / len(tensors))
    return max(live.peak, math.ceil(full))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of meta tensors that are alive, the module's own left out; `peak` is the most there were."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.own = [tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]]
        self.alive = {storage._cdata for storage in self.own}
        self.now = self.peak = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        args, kwargs = _on_meta(op, args, kwargs or {})
        if op is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False  # transformers asks whether a mask is all true: the batch to plan for is padded
        result = op(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._notice(tensor.untyped_storage())
        return result

    def _notice(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def _on_meta(op, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Where real tensors (lengths, ids, masks) meet those without contents, they lose theirs; a mask that selects is used first."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors) or all(tensor.is_meta for tensor in tensors):
        return args, kwargs
    if op.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_):
        masks = [index for index in args[1] if index is not None and index.dtype == torch.bool and not index.is_meta]
        if masks:
            used = [index.nonzero().unbind(1) if any(index is mask for mask in masks) else [index] for index in args[1]]
            indices = [place for places in used for place in places]
            args = (args[0], indices, *args[2:])
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))


class FusedAttention(TorchFunctionMode):
    """scaled_dot_product_attention without its T x T scores, as fused kernels compute it. (Training on a CPU keeps the scores, see
    steermoe.attention; there long utterances take more than is estimated.)
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*_qkv(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def _qkv(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query, key, value


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
