"""Whisper's own decoder on its own encoder, by transformers: the score that a steered encoder is compared with.

Nothing of this project's encoder, features or search is used here, so the comparison is an independent one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from steermoe.encoders.whisper_checkpoint import EMBED, WhisperCheckpoint, load_checkpoint, open_checkpoint
from steermoe.encoders.whisper_tokens import WhisperTokens, read_table
from steermoe.errors import UserError
from steermoe.files import read_json

SAMPLE_RATE = 16000
WINDOW_SAMPLES = 30 * SAMPLE_RATE
VOCABULARY = "whisper-vocabulary"  # catalog entry for models that come without their own, as OpenAI's .pt files do


class Transcript(NamedTuple):
    text: str
    complete: bool  # False: a window ran into the longest answer (endless repeats)


class WhisperDecoder:
    """path: any layout of whisper_checkpoint.py. beam 1 is greedy. dtype and device: float32 is the reference.

    timestamps: the decoder marks the time of each phrase, as in OpenAI's own transcription; without, it ends early more often.
    """

    def __init__(
        self,
        path: str | Path,
        language: str = "en",
        beam: int = 1,
        timestamps: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperTimeStampLogitsProcessor

        checkpoint = load_checkpoint(path)
        folder = _folder(path)
        self.tokens, _ = load_tokens(folder, checkpoint.dims.vocab_size)
        self.prompt = self.tokens.prompt(language, timestamps)
        self.dtype, self.device = dtype, torch.device(device)
        self.model = build_model(checkpoint).to(self.device, dtype)
        self.extract = WhisperFeatureExtractor(feature_size=checkpoint.dims.n_mels)
        suppressed, at_begin = _suppressed(folder, self.tokens)
        self.longest = min(checkpoint.dims.max_target_positions // 2, checkpoint.dims.max_target_positions - len(self.prompt))
        self.generation = GenerationConfig(
            max_new_tokens=self.longest,
            num_beams=beam,
            do_sample=False,
            suppress_tokens=suppressed or None,
            begin_suppress_tokens=at_begin or None,
            eos_token_id=self.tokens.end,
            pad_token_id=self.tokens.end,
            decoder_start_token_id=self.tokens.start,
            bos_token_id=self.tokens.end,
            no_timestamps_token_id=self.tokens.no_timestamps,
            max_initial_timestamp_index=50,  # the first phrase begins within a second, as in OpenAI's own decoding
        )
        self.model.generation_config = self.generation  # what is None above must stay None
        rules = WhisperTimeStampLogitsProcessor(self.generation, begin_index=len(self.prompt))
        self.processors = [rules] if timestamps else []

    @torch.inference_mode()
    def transcribe(self, utterances: list[np.ndarray]) -> list[Transcript]:
        """utterances: float32 (N,) in [-1, 1] at 16 kHz, of any length; over 30 s it is cut into equal windows."""
        windows = [split_windows(samples) for samples in utterances]
        flat = [window for utterance in windows for window in utterance]
        done = []
        for first in range(0, len(flat), max(len(utterances), 1)):
            done += self._decode(flat[first : first + len(utterances)])
        pieces = iter(done)
        results = []
        for utterance in windows:
            parts = [next(pieces) for _ in utterance]
            text = " ".join(self.tokens.decode(ids).strip() for ids, _ in parts)
            results.append(Transcript(" ".join(text.split()), all(complete for _, complete in parts)))
        return results

    def _decode(self, windows: list[np.ndarray]) -> list[tuple[list[int], bool]]:
        """At most 30 s each -> (token ids without the prompt and the end, whether the end came)."""
        from transformers import GenerationMixin, LogitsProcessorList

        feats_bmf = self.extract(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        feats_bmf = feats_bmf.to(self.device, self.dtype)
        prompt_bu = torch.tensor([self.prompt] * len(windows), device=self.device)
        # The plain search: Whisper's own `generate` adds timestamps and long-form heuristics that change between releases.
        output = GenerationMixin.generate(
            self.model,
            feats_bmf,
            generation_config=self.generation,
            logits_processor=LogitsProcessorList(self.processors),
            decoder_input_ids=prompt_bu,
            # Whisper attends to all 30 s; without this, transformers warns that it cannot tell padding (= end) from text.
            attention_mask=torch.ones_like(feats_bmf[:, 0], dtype=torch.long),
        )
        results = []
        for row in output[:, len(self.prompt) :].tolist():
            end = row.index(self.tokens.end) if self.tokens.end in row else len(row)
            results.append((row[:end], end < self.longest))
        return results


def source_files(path: str | Path) -> list[Path]:
    """What a transcript depends on beside the audio: the weights' files and the vocabulary. UserError for an encoder alone."""
    source = open_checkpoint(path)
    if EMBED not in source.shapes:
        raise UserError(f"{source.where}: holds no decoder; give a whole Whisper model")
    return [*source.files, load_tokens(_folder(path), source.shapes[EMBED][0])[1]]


def split_windows(samples: np.ndarray) -> list[np.ndarray]:
    """(N,) -> ceil(N / 30 s) windows of equal length, so that no short rest is left to guess words into."""
    count = max(-(-len(samples) // WINDOW_SAMPLES), 1)
    return np.array_split(samples, count)


def build_model(checkpoint: WhisperCheckpoint):
    """transformers' WhisperForConditionalGeneration with the checkpoint's sizes and weights, float32, eval mode."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    dims = checkpoint.dims
    config = WhisperConfig(
        vocab_size=dims.vocab_size,
        num_mel_bins=dims.n_mels,
        d_model=dims.d_model,
        encoder_layers=dims.encoder_layers,
        encoder_attention_heads=dims.encoder_heads,
        encoder_ffn_dim=dims.encoder_ffn_dim,
        decoder_layers=dims.decoder_layers,
        decoder_attention_heads=dims.decoder_heads,
        decoder_ffn_dim=dims.decoder_ffn_dim,
        max_source_positions=dims.max_source_positions,
        max_target_positions=dims.max_target_positions,
        pad_token_id=0,  # special tokens are the caller's: they depend on the vocabulary
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.device("meta"):  # no time spent on random weights
        model = WhisperForConditionalGeneration(config)
    state = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def load_tokens(folder: Path, vocab_size: int) -> tuple[WhisperTokens, Path]:
    """Tokens, and the vocabulary file they came from: in the model's own folder, else the catalog's for all Whisper models."""
    found = read_table(folder, vocab_size)
    if found is None:
        from steermoe.fetch import find_model

        try:
            shared = find_model(VOCABULARY, kind="vocabulary")
        except UserError as error:
            raise UserError(
                f"{folder}: no vocabulary (*.tiktoken, vocab.json, tokenizer.json, vocabulary.json or vocabulary.txt); "
                f"put one there. Fetching one failed: {error}"
            ) from None
        found = read_table(shared, vocab_size)
        if found is None:
            raise UserError(f"{shared}: no vocabulary for a Whisper model with {vocab_size} outputs; fetch {VOCABULARY} again")
    table, path = found
    return WhisperTokens(vocab_size, table), path


def _folder(path: str | Path) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _suppressed(folder: Path, tokens: WhisperTokens) -> tuple[list[int], list[int]]:
    """Token ids never written, and never written first: as the model's folder states them, else Whisper's own."""
    suppressed, at_begin = tokens.suppressed, tokens.suppressed_at_begin
    for name, keys in (
        ("generation_config.json", ("suppress_tokens", "begin_suppress_tokens")),
        ("config.json", ("suppress_ids", "suppress_ids_begin")),
    ):
        path = folder / name
        if path.is_file():
            stated = read_json(path)
            if any(key in stated for key in keys):
                # -1 or null: a conversion that left the question open
                lists = [stated.get(key) if isinstance(stated.get(key), list) else None for key in keys]
                return (
                    suppressed if lists[0] is None or lists[0] == [-1] else lists[0],
                    at_begin if lists[1] is None else lists[1],
                )
    return suppressed, at_begin
