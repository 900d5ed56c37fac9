"""A conversation with a trained model: turns of text and audio, the LLM's own chat template, its KV cache kept between turns.

    conversation = Conversation(load_model("exp/whisper")[0], tools=[get_weather])
    print(conversation.say(Path("question.wav"), "Answer in one word.").text)

Shape legend: N audio vectors of the conversation, H LLM width, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from steermoe.calling.parse import Call, parse_calls
from steermoe.calling.tools import Tools
from steermoe.chat.cache import RunningCache
from steermoe.chat.template import ChatTemplate
from steermoe.config import DecodeConf
from steermoe.data.audio import load_audio
from steermoe.data.collator import Batch
from steermoe.data.features import SAMPLE_RATE
from steermoe.decode.decoder import decode_batch, listen
from steermoe.decode.repeats import loop_start
from steermoe.errors import UserError
from steermoe.llms.template import stop_tokens

CONSTRAINED = ("false", "true", "required")
MAX_REPEATS = 4  # as decode_conf.max_repeats: the guard against endless repeats
AGAIN = "this has just been called and is not run again; tell the user in words what it has given: "
NEEDS_READING = (
    "talker: another LLM understands nothing but text, and this adapter writes vectors for its own; take an adapter that reads by "
    "CTC (decode_conf.ctc_weight and context, as the pretrained one), or leave the talker away"
)


class Reply(NamedTuple):
    """text: the answer. calls: what the LLM has called on the way, in order, with results or errors; the call before once more is not run.

    ended: "end" by the model; "length" by max_tokens or the LLM's context; "repeat" by the guard; "calls" after max_rounds rounds
    of calls; "bad call" by a second call that could not be run (the last of `calls` says why).
    """

    text: str
    calls: list[Call]
    ended: str


class Conversation:
    """model: a SteerMoE in eval mode. tools: typed Python functions, or a file of them (see calling.tools).

    system: the system message; None: what the adapter was trained with. max_tokens: of one answer. max_rounds: how often the
    LLM may call before it has to answer. tool_seconds: time limit of one call. constrained: "true" keeps calls inside the tools'
    schemas by a grammar, "required" also makes every turn begin with a call (both need the package llguidance). decode_conf: how
    audio is heard, where CTC and the LLM hear together; None: as DecodeConf(). talker: another LLM that talks, in place of the
    model's: it gets what the adapter reads in the audio, as text, so the adapter must read by CTC.
    """

    def __init__(
        self,
        model,
        tools: Sequence[Callable] | str | Path = (),
        *,
        system: str | None = None,
        max_tokens: int = 512,
        max_rounds: int = 5,
        tool_seconds: float = 10.0,
        constrained: bool | str = "false",
        decode_conf: DecodeConf | None = None,
        talker=None,
    ):
        constrained = str(constrained).lower()
        self.model, self.llm, self.reads = model, talker or model.llm, talker is not None
        self.max_tokens, self.max_rounds = max_tokens, max_rounds
        self.decode_conf = decode_conf or DecodeConf()
        if self.reads and not (self.decode_conf.ctc_weight == 1 or (self.decode_conf.ctc_weight and self.decode_conf.context)):
            raise UserError(NEEDS_READING)
        self.tools = Tools(tools, tool_seconds)
        self.template = ChatTemplate(self.llm.tokenizer, self.llm.system if system is None else system, self.tools.schemas)
        self.frontend = type(model.encoder).frontend(model.encoder.model)
        self.stop = stop_tokens(self.llm.tokenizer, getattr(self.llm.llm, "generation_config", None), chat=True)
        self.grammar, self.required = None, constrained == "required"
        if constrained not in CONSTRAINED:
            raise UserError(f"constrained: {constrained!r} is not one of {', '.join(CONSTRAINED)}")
        if constrained != "false" and self.tools.schemas:
            from steermoe.calling.grammar import CallGrammar

            self.grammar = CallGrammar(self.llm.tokenizer, self.template.call_form(), self.tools.schemas, self.stop)
        self.cache = RunningCache(self.llm)
        self.messages: list[dict] = []
        self.spans: list[range] = []  # of the vectors of every piece of audio
        self.audio_nh = torch.zeros(0, self.llm.dim, device=self.llm.llm.device)

    def say(self, *parts: str | Path | np.ndarray | Tensor) -> Reply:
        """One turn. parts, in any order: str is text; a Path is an audio file, an array (N,) float32 is audio at 16 kHz.

        UserError if audio cannot be read or is too long for the encoder, if text spells control tokens, or if the conversation
        has become too long for the LLM. After any exception the conversation is what it was before the turn.
        """
        kept = len(self.messages)
        try:
            self.messages.append({"role": "user", "content": self._content(parts)})
            return self._answer()
        except BaseException:
            del self.messages[kept:]
            raise

    def resume(self, turns: Sequence[tuple[str, Sequence]]) -> None:
        """Takes over what was said before: (role, parts), "user" and "assistant" in turn. UserError as by `say`."""
        for role, parts in turns:
            content = self.template.defuse(" ".join(parts)) if role == "assistant" else self._content(parts)
            self.messages.append({"role": role, "content": content})

    def clear(self) -> None:
        """Begins anew, with the same model and tools."""
        self.messages, self.spans, self.audio_nh = [], [], self.audio_nh[:0]
        self.cache.keep_text()

    def _content(self, parts: Sequence) -> str:
        """The parts as text, with a mark for every piece of audio; words and marks are parted by a space."""
        if not parts:
            raise UserError("nothing was said: a turn is text, audio, or both")
        waves = [None if isinstance(part, str) else self._load(part) for part in parts]
        words = []
        for part, wave in zip(parts, waves):
            if wave is None:
                words.append(self.template.check_text(part))
            elif self.reads:
                words.append(self.template.defuse(self._read(wave)))
            else:
                words.append(f"<audio {len(self.spans)}>")
                self._hear(wave)
        return " ".join(words)

    def _load(self, part: Path | np.ndarray | Tensor) -> Tensor:
        """(N,) float32 at 16 kHz."""
        name = str(part) if isinstance(part, Path) else "audio"
        samples = load_audio(part) if isinstance(part, Path) else part
        wave = torch.as_tensor(samples, dtype=torch.float32).cpu()
        if wave.ndim != 1 or not len(wave):
            raise UserError(f"{name}: audio is samples (N,) at {SAMPLE_RATE} Hz, and this is {tuple(wave.shape)}")
        longest = self.frontend.max_frames and self.frontend.max_frames / self.frontend.frames_per_second
        if longest and len(wave) > longest * SAMPLE_RATE:
            seconds = len(wave) / SAMPLE_RATE
            raise UserError(f"{name}: {seconds:.1f} s long; the encoder reads at most {longest:g} s at a time: cut it at pauses")
        return wave

    def _batch(self, wave: Tensor) -> Batch:
        """Audio alone: what hears it needs no prompt."""
        feats_fm = self.frontend(wave)
        none = torch.zeros(1, dtype=torch.long)
        batch = Batch(["audio"], feats_fm[None], torch.tensor([len(feats_fm)]), none[None], none, none, none)
        return batch.to(self.audio_nh.device)

    def _read(self, wave: Tensor) -> str:
        """What the adapter and its own LLM read in the audio."""
        found = decode_batch(self.model, self._batch(wave), [len(wave) / SAMPLE_RATE], self.decode_conf)[0]
        return " ".join(self.model.llm.decode(found.tokens).split())

    @torch.inference_mode()
    def _hear(self, wave: Tensor) -> None:
        vectors_1uh, lens_1 = listen(self.model, self._batch(wave), [len(wave) / SAMPLE_RATE], self.decode_conf)
        heard = len(self.audio_nh)
        self.audio_nh = torch.cat([self.audio_nh, vectors_1uh[0, : int(lens_1)].float()])
        self.spans.append(range(heard, len(self.audio_nh)))

    def _answer(self) -> Reply:
        calls: list[Call] = []
        ran: Call | None = None  # the last one
        forgiven = False  # one call that cannot be run is shown to the LLM, so that it can correct it
        for round_ in range(self.max_rounds + 1):
            tokens, ended = self._generate(first=round_ == 0)
            text = self.llm.decode(tokens).strip()
            said, asked = text, []
            if self.tools.schemas:
                said, asked = parse_calls(self.llm.tokenizer.decode(tokens, skip_special_tokens=False))
            if not asked or round_ == self.max_rounds:
                ended = "calls" if asked else ended
                self.messages.append({"role": "assistant", "content": self.template.defuse(text)})
                return Reply(said if asked else text, calls, ended)
            for call in asked:
                call.error = call.error or self.tools.check(call)
                bad = call.error is not None
                if ran and ran.error is None and (call.name, call.arguments) == (ran.name, ran.arguments):
                    call.error = AGAIN + ran.result
                elif not bad:
                    self.tools.run(call)
                    ran = call
                calls.append(call)
                self._record(call, said, text)
                if bad and forgiven:
                    return Reply(said, calls, "bad call")
                forgiven, said = forgiven or bad, ""
        raise AssertionError("the loop returns in its last round")

    def _record(self, call: Call, said: str, text: str) -> None:
        """A call and what came of it, as messages. Neither may smuggle in control tokens."""
        result = self.template.defuse(call.result if call.error is None else f"error: {call.error}")
        if not call.name:
            self.messages.append({"role": "assistant", "content": self.template.defuse(text)})
            self.messages.append({"role": "tool", "content": result})
            return
        number = f"call{sum('call' in message for message in self.messages):05d}"  # nine characters, as Mistral's template wants
        arguments = json.loads(self.template.defuse(json.dumps(call.arguments, ensure_ascii=False)))
        shown = {"name": self.template.defuse(call.name), "arguments": arguments, "id": number}
        self.messages.append({"role": "assistant", "content": self.template.defuse(said), "call": shown})
        self.messages.append({"role": "tool", "name": shown["name"], "tool_call_id": number, "content": result})

    def _generate(self, first: bool = True) -> tuple[list[int], str]:
        """Greedy. first: nothing has been called in this turn. -> token ids without the end token, and how they ended."""
        places = self.template.places(self.messages, self.spans)
        config = self.llm.llm.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or len(places) + self.max_tokens
        if len(places) >= longest:
            size = f"{len(places)} tokens and audio vectors"
            raise UserError(f"the conversation has {size}, the LLM reads {longest}: begin a new one")
        tokens: list[int] = []
        guide = self.grammar.begin(self.required and first) if self.grammar else None
        while True:
            logits_v = self.cache.read([*places, *tokens], self.audio_nh)
            token = int((guide.allow(logits_v) if guide else logits_v).argmax())
            if token in self.stop:
                return tokens, "end"
            tokens.append(token)
            if guide:
                guide.accept(token)
            if (cut := loop_start(tokens, MAX_REPEATS)) is not None:
                return tokens[:cut], "repeat"
            if len(tokens) >= min(self.max_tokens, longest - len(places)):
                return tokens, "length"
