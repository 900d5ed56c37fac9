"""The paper's model with random weights at a known size, and batches of invented utterances: speed alone is measured on them."""

from __future__ import annotations

import random

import torch

from steermoe.data.collator import Batch
from steermoe.dtypes import resolve_dtype
from steermoe.encoders.whisper import WhisperEncoder
from steermoe.llms.causal import CausalLM
from steermoe.model import SteerMoE
from steermoe.projector import LinearProjector
from steermoe.registry import resolve
from steermoe.shapes import known_sizes
from steermoe.steering import MoESteering

WHISPER, QWEN = "openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct"
SHAPES = {  # encoder, its model, the projector's kernel, LLM
    "tiny": ("whisper", "whisper-tiny.en", 4, "SmolLM2-135M-Instruct"),
    "w7b": ("whisper", WHISPER, 4, QWEN),
    "c7b": ("conformer", "FireRedTeam/FireRedASR-AED-L", 2, QWEN),
}
PROMPT_TOKENS = 9  # "please transcribe the audio content into text: "
TOKENS_A_SECOND = 3.4  # of read English


def add_shape_options(parser) -> None:
    parser.add_argument("--shapes", choices=SHAPES, default="tiny", help="Whisper tiny.en + SmolLM2-135M, or the paper's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def make_pair(shapes: str, device: str, dtype: str = "bfloat16", window: str = "trim") -> SteerMoE:
    """Encoder and LLM in `dtype`, the adapter in float32, all drawn on the device, the same ones each time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, encoder_model, kernel, llm_model = SHAPES[shapes]
    conf = {"model": encoder_model, "dtype": dtype} | ({"window": window} if kind == "whisper" else {})
    nothing_ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    settings = AutoConfig.for_model(**known_sizes(llm_model), **nothing_ends)
    torch.manual_seed(1)
    with torch.device(device):
        encoder = resolve("encoder", kind)(**known_sizes(encoder_model), **conf).to(resolve_dtype(dtype))
        llm = AutoModelForCausalLM.from_config(settings, dtype=resolve_dtype(dtype))
        steering = MoESteering(encoder.num_layers, encoder.dim)
        projector = LinearProjector(encoder.dim, llm.config.hidden_size, kernel=kernel)
    causal = CausalLM(llm, None, model=llm_model, dtype=dtype, chat=False)
    return SteerMoE(encoder.requires_grad_(False).eval(), steering, projector, causal)


def feature_size(encoder) -> int:
    return encoder.conv1.in_channels if isinstance(encoder, WhisperEncoder) else len(encoder.cmvn_mean)


def answer_tokens(seconds: float) -> int:
    return max(1, round(seconds * TOKENS_A_SECOND))


def make_batch(model: SteerMoE, seconds: list[float], answers: bool) -> Batch:
    """[audio][prompt][answer][end], as in the paper; features and tokens mean nothing."""
    draw = torch.Generator().manual_seed(2)
    lens = torch.tensor([round(100 * s) for s in seconds])
    text_lens = torch.tensor([PROMPT_TOKENS + (answer_tokens(s) + 1 if answers else 0) for s in seconds])
    feats = torch.randn(len(seconds), int(lens.max()), feature_size(model.encoder), generator=draw) * 0.5
    ids = torch.randint(0, model.llm.llm.config.vocab_size, (len(seconds), int(text_lens.max())), generator=draw)
    zeros = torch.zeros_like(lens)
    batch = Batch([str(s) for s in seconds], feats, lens, ids, text_lens, zeros, zeros + PROMPT_TOKENS)
    return batch.to(model.projector.linear.weight.device)


def corpus_seconds(count: int) -> list[float]:
    """Durations like those of read utterances: 2 to 30 s, 7.4 on average, in the corpus's order."""
    draw = random.Random(0)
    return [round(min(30.0, max(2.0, draw.gammavariate(2.2, 3.4))), 2) for _ in range(count)]
