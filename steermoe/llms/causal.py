"""Any Hugging Face causal LLM, frozen: its embeddings in, its hidden states and chosen logits out.

Shape legend: B batch, S sequence places, H width, V vocabulary, R selected rows.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Callable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from steermoe.attention import NAME, Rows, attend_by_products
from steermoe.dtypes import resolve_dtype
from steermoe.errors import UserError
from steermoe.fetch import find_model, fingerprint
from steermoe.llms.packed import pack
from steermoe.llms.quantization import bitsandbytes_config, check_kind, keep_differentiable
from steermoe.llms.template import PromptTemplate, make_template, stop_tokens
from steermoe.masks import padded, unpadded


class CausalLM(nn.Module):
    """dtype: "auto", "bfloat16", "float16" or "float32". chat: the prompt goes through the tokenizer's chat template (false: bare text,
    as in the paper). system: the system message, null for the template's own. quantization: "none", "int8" or "int4".
    """

    def __init__(
        self,
        llm: nn.Module,
        tokenizer,
        *,
        model: str,
        dtype: str = "auto",
        chat: bool = True,
        system: str | None = None,
        quantization: str = "none",
    ):
        super().__init__()
        attend_by_products(llm)
        self.llm, self.tokenizer = llm.requires_grad_(False).eval(), tokenizer
        self.model, self.dtype, self.chat, self.system, self.quantization = model, dtype, chat, system, quantization
        self.dim = llm.get_input_embeddings().weight.shape[1]
        self.fingerprint = ""
        if chat and tokenizer is not None and not tokenizer.chat_template:
            raise UserError(f"llm_conf.model: {model} has no chat template; set llm_conf.chat: false, or take its instruct variant")

    @classmethod
    def from_pretrained(cls, model: str, *, dtype: str = "auto", quantization: str = "none", **conf) -> "CausalLM":
        """model: local folder, hub id or catalog name. Never runs code from the model's folder."""
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        check_kind(quantization)
        packing = bitsandbytes_config(quantization, resolve_dtype(dtype))
        path = find_model(model, kind="llm")
        settings = {"quantization_config": packing} if packing else {}
        try:
            llm, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=resolve_dtype(dtype), use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
            )
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise UserError(f"llm_conf.model: {path} is not a causal language model with safetensors weights: {error}") from None
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"llm_conf.model: {path} lacks the weights {missing[0]} ({len(missing)} in all); copy the model again")
        wrapped = cls(llm, load_tokenizer(path), model=model, dtype=dtype, quantization=quantization, **conf)
        keep_differentiable(llm)
        wrapped.fingerprint = fingerprint(path)
        wrapped.check_logits()
        wrapped.template("")  # a chat template that refuses the system message is known before training begins
        return wrapped

    @classmethod
    def without_weights(cls, source: Path | dict, *, model: str, dtype: str = "auto", **conf) -> "CausalLM":
        """The same shapes on the meta device, and no tokenizer. source: the model's folder, or its sizes and model_type."""
        from transformers import AutoConfig, AutoModelForCausalLM

        check_kind(conf.get("quantization", "none"))
        try:
            config = AutoConfig.for_model(**source) if isinstance(source, dict) else AutoConfig.from_pretrained(source)
            with torch.device("meta"):
                llm = AutoModelForCausalLM.from_config(config, dtype=resolve_dtype(dtype), trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"llm_conf.model: {model} is not a causal language model: {error}") from None
        return cls(llm, None, model=model, dtype=dtype, **conf)

    @classmethod
    def text_encoder(cls, model: str) -> Callable[[str], list[int]]:
        """`encode` of this LLM without loading its weights."""
        return functools.partial(encode, load_tokenizer(find_model(model, kind="llm")))

    def embed(self, ids_bs: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, H) in the LLM's dtype."""
        return self.llm.get_input_embeddings()(ids_bs)

    def hidden(
        self, vectors_bsh: Tensor, mask_bs: Tensor | None = None, positions_bs: Tensor | None = None, cache=None
    ) -> Tensor:
        """Last hidden states (B, S, H). mask_bs covers the cached places too; cache: a transformers Cache, extended in place.

        Without mask and positions: rows begin at their first place. Padding behind them needs no mask, since no place looks ahead.
        With a mask and nothing cached, padding is not computed where `packs`: it is 0. (A row alone has none, and goes the way of
        transformers, to the last bit of its rounding.)
        """
        begins = mask_bs is not None and mask_bs.shape == vectors_bsh.shape[:2]
        if begins and min(vectors_bsh.shape[:2]) > 1 and self.packs:
            return self._end_to_end(vectors_bsh, mask_bs.bool(), positions_bs, cache)
        output = self.llm.get_decoder()(
            inputs_embeds=vectors_bsh,
            attention_mask=None if mask_bs is None else mask_bs.long(),
            position_ids=positions_bs,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def _end_to_end(self, vectors_bsh: Tensor, mask_bs: Tensor, positions_bs: Tensor, cache=None) -> Tensor:
        """`hidden` of rows without their padding, one behind the other as a single one."""
        from transformers.cache_utils import DynamicCache

        vectors_1xh, positions_1x = unpadded(vectors_bsh, mask_bs)[None], unpadded(positions_bs, mask_bs)[None]
        held = None if cache is None else DynamicCache()
        hidden_1xh = self._rows(vectors_1xh, positions_1x, Rows(mask_bs.sum(1).tolist()), held)
        for index, layer in enumerate(held.layers if held else []):
            keys, values = (padded(heads_1gxe[0].transpose(0, 1), mask_bs).transpose(1, 2) for heads_1gxe in (layer.keys, layer.values))
            cache.update(keys, values, index)
            layer.keys = layer.values = None
        return padded(hidden_1xh[0], mask_bs)

    def _rows(self, vectors_1xh: Tensor, positions_1x: Tensor, rows: Rows, cache=None) -> Tensor:
        ready_11st = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # four dimensions: transformers makes no mask of its own
        return self.llm.get_decoder()(
            inputs_embeds=vectors_1xh, attention_mask=ready_11st, position_ids=positions_1x, past_key_values=cache, use_cache=cache is not None,
            rows=rows,
        ).last_hidden_state  # fmt: skip

    @property
    def packs(self) -> bool:
        """Whether rows of different lengths are computed end to end, without padding: on a CPU, by an LLM whose every layer is attention to
        all that was said before, and of the kind that steermoe.attention replaces.
        """
        return self.llm.device.type == "cpu" and self._keeps_rows_apart

    @functools.cached_property
    @torch.no_grad()
    def _keeps_rows_apart(self) -> bool:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        layers = DynamicCache(config=self.llm.config).layers
        if self.llm.config._attn_implementation != NAME or any(type(layer) is not DynamicLayer for layer in layers):
            return False
        ids_15, rows = torch.arange(5)[None], Rows([3, 2])
        vectors_15h = self.embed(ids_15)
        try:
            together_15h = self._rows(vectors_15h, torch.tensor([[0, 1, 2, 0, 1]]), rows)
        except TypeError:  # a decoder that hands no keywords on
            return False
        alone_12h = self.llm.get_decoder()(inputs_embeds=vectors_15h[:, 3:]).last_hidden_state
        return rows.layers == self.llm.config.get_text_config().num_hidden_layers and torch.allclose(together_15h[:, 3:], alone_12h, atol=0.1, rtol=0.1)

    def logits(self, hidden_rh: Tensor) -> Tensor:
        """(R, H) -> (R, V) in the LLM's dtype, for the rows that are needed and no others."""
        logits_rv = self.llm.get_output_embeddings()(hidden_rh)
        config = self.llm.config.get_text_config()
        if getattr(config, "logits_scaling", None):  # Granite
            logits_rv = logits_rv / config.logits_scaling
        if getattr(config, "logit_scale", None):  # Cohere
            logits_rv = logits_rv * config.logit_scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits_rv = torch.tanh(logits_rv / cap) * cap
        return logits_rv

    @torch.no_grad()
    def check_logits(self) -> None:
        """UserError if the model puts something between its hidden states and its logits that `logits` does not know."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.llm.device)
        ones = torch.ones_like(ids)
        ours = self.logits(self.hidden(self.embed(ids), ones, ones.cumsum(1) - 1)[0])
        theirs = self.llm(input_ids=ids, attention_mask=ones).logits[0]
        if not torch.allclose(ours.float(), theirs.float(), atol=0.05, rtol=0.05):
            raise UserError(f"llm_conf.model: {self.model} ({self.llm.config.model_type}) computes its logits in an unknown way")

    def template(self, prompt: str) -> PromptTemplate:
        """The token ids around the audio for one prompt; see steermoe.llms.template."""
        return make_template(self.tokenizer, prompt, self.chat, self.system)

    def pack(self) -> "CausalLM":
        """Ready to decode on this device, and no longer to learn through; see steermoe.llms.packed."""
        pack(self.llm)
        return self

    def stop_ids(self) -> set[int]:
        """Tokens that end an answer: the chat template's own, the tokenizer's and the generation configuration's."""
        return stop_tokens(self.tokenizer, getattr(self.llm, "generation_config", None), self.chat)

    def encode(self, text: str) -> list[int]:
        """Token ids of an answer."""
        return encode(self.tokenizer, text)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def load_tokenizer(path: Path):
    """UserError if there is none in the model's folder. Never runs code from it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"llm_conf.model: {path} has no tokenizer that can be read: {error}") from None


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of plain text: special tokens that the text spells out are not honoured."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
