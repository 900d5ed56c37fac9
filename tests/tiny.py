"""Random models and data sets of a few kilobytes for unit tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_bases(folder: Path) -> Path:
    make_whisper(folder / "whisper")
    make_llm(folder / "llm")
    return folder


def make_whisper(path: Path, seed: int = 1):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=80, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(path)
    return model


def make_tokenizer(path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHATML
    fast.save_pretrained(path)
    return fast


def make_llm(path: Path, seed: int = 2, kind: str = "llama", **extra):
    """kind: a transformers model type; the weights are spread so that greedy answers vary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(path)
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(settings | extra))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    return model


def make_dataset(folder: Path, lengths: list[int], seed: int = 3, name: str = "train") -> Path:
    """Random features in an ark and the data.jsonl that stage 2 would write. lengths: input frames. Returns the data.jsonl."""
    from steermoe.data.ark import ArkWriter

    rng = np.random.default_rng(seed)
    words = ["one", "two", "three", "press", "star", "hello", "world"]
    lines = []
    with ArkWriter(folder / f"{name}.ark", 0) as writer:
        for index, frames in enumerate(lengths):
            utt = f"spk{index % 2}-{name}{index:03d}"
            offset = writer.write(utt, rng.normal(0, 0.5, (frames, 80)).astype(np.float32))
            text = " ".join(rng.choice(words, rng.integers(1, 4)))
            entry = {"utt": utt, "spk": utt[:4], "text": text, "feats": f"{folder / name}.ark:{offset}", "num_frames": frames}
            lines.append(json.dumps(entry | {"duration": frames / 100, "num_tokens": len(text)}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
