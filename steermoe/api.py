"""The library's front door: a trained model with its frozen bases, and what one does with it.

    from steermoe import SteerMoE

    model = SteerMoE.from_pretrained("pretrained")                # or a folder, an archive, a hub's USER/NAME
    model.transcribe("a.wav")                                     # "hello world"
    model.transcribe(["a.wav", samples, "an_hour.mp3"])           # three texts; recordings may have any length
    for partial in model.stream(chunks):                          # text while audio arrives
        print(partial.new, end="", flush=True)
    model.chat(["what is said in", Path("a.wav"), "?"]).text      # an answer; tools=[…] lets it call functions
    talk = model.conversation()                                   # a conversation of many turns
    talk.say(Path("a.wav")).text

torch and transformers are imported when a model is loaded, so that importing this is quick.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Sequence, Union, overload

import numpy as np

from steermoe.errors import UserError
from steermoe.streaming import Partial, Stream
from steermoe.transcript import Transcript

if TYPE_CHECKING:
    from torch import Tensor

    from steermoe.chat import Conversation, Reply
    from steermoe.config import Config, DecodeConf
    from steermoe.data.segment import Piece
    from steermoe.model import SteerMoE as Network

Audio = Union[str, Path, np.ndarray, "Tensor", Iterator[np.ndarray]]
"""A file that soundfile reads, at any rate and with any number of channels; one channel's samples, float in [-1, 1] or int16; or
an iterator of such samples at 16 kHz."""

SAMPLE_RATE = 16000
GROUP_BATCHES = 4  # pieces are sorted by length among so many batches: what is held in memory


class SteerMoE:
    """A model that transcribes and answers. `network` is the torch module, `config` its configuration, `decode_conf` how it decodes
    (its fields may be set), `prompt` what the LLM is asked, `frontend` makes the encoder's features of samples.
    """

    def __init__(self, network: Network, config: Config, metadata: dict | None = None, origin: Path | None = None):
        """metadata: of the adapter, with "step" and "environment"; None for one that was not trained. origin: its file."""
        from steermoe.data.collator import Collator
        from steermoe.registry import resolve

        self.network, self.config = network.eval(), config
        self.decode_conf: DecodeConf = dataclasses.replace(config.decode_conf)
        self.prompt: str = config.data_conf.prompt
        self._metadata, self._origin = metadata or {"step": 0, "environment": {}}, origin
        self.frontend = resolve("encoder", config.encoder).frontend(config.encoder_conf["model"])
        self._collator = Collator(network.llm, self.prompt, answers=False)

    @classmethod
    def from_pretrained(
        cls,
        where: str | Path = "pretrained",
        *,
        device: str = "cpu",
        dtype: str | None = None,
        encoder_model: str | None = None,
        llm_model: str | None = None,
        prompt: str | None = None,
    ) -> SteerMoE:
        """where: an experiment folder, a package or its archive FILE.zip, an adapter file, "USER/NAME" on the model hub, or
        "pretrained" for the one that comes with the code. Nothing in what is downloaded or unpacked is executed.

        device: "cpu" or "cuda". dtype: of the frozen models, "float32", "bfloat16", "float16" or "auto"; default: as trained.
        encoder_model, llm_model: where the frozen models are, if not where training found them. prompt: instead of the one that
        it was trained with. UserError says what is missing and how to get it.
        """
        from steermoe.loading import paused_collection

        with paused_collection():
            from steermoe.checkpoint import load_model, read_metadata
            from steermoe.pretrained import find_adapter

            origin = find_adapter(where)
            network, config = load_model(origin, device, encoder_model, llm_model, dtype)
            model = cls(network, config, read_metadata(origin)[1], origin)
        model.prompt = prompt or model.prompt
        return model

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a package, from which `from_pretrained` makes this model again: adapter.safetensors, config.yaml, a model card
        with the data, the scores and the bases' licences, what the experiment has of results and curves. -> the adapter's path.
        """
        return self._save(Path(folder), Path(folder).absolute().name)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to USER/NAME on the model hub, made if there is none. -> its address.

        token: default: what `hf auth login` or HF_TOKEN has left. UserError says why it cannot be done.
        """
        from steermoe.hub import upload

        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), name.rpartition("/")[2])
            return upload(Path(folder), name, private, token)

    def _save(self, folder: Path, name: str) -> Path:
        from steermoe.checkpoint import save_adapter
        from steermoe.package import complete

        config = dataclasses.replace(self.config, decode_conf=self.decode_conf)
        for role, conf in self._metadata.get("config", {}).items():
            if role in ("encoder_conf", "llm_conf"):  # by the names that they were trained with, not where they are on this disk
                setattr(config, role, getattr(config, role) | {"model": conf["model"]})
        path = folder / "adapter.safetensors"
        save_adapter(path, self.network, config, self._metadata["step"], self._metadata["environment"])
        bases = {f"{role}_sha256": value for role, value in self.network.bases().items()}
        complete(folder, self._origin, name, config, bases)
        return path

    @property
    def limit(self) -> float:
        """Seconds of audio that are read at a time; longer recordings are cut at pauses."""
        longest = self.config.data_conf.max_seconds
        if self.frontend.max_frames:
            longest = min(longest, self.frontend.max_frames / self.frontend.frames_per_second)
        return longest

    @overload
    def transcribe(self, audio: Audio, sampling_rate: int = SAMPLE_RATE) -> str: ...
    @overload
    def transcribe(self, audio: Sequence[Audio], sampling_rate: int = SAMPLE_RATE) -> list[str]: ...

    def transcribe(self, audio, sampling_rate=SAMPLE_RATE):
        """The text of a recording, or the texts of a list of them, decoded in batches. sampling_rate: of samples given as arrays.

        UserError names a file that is missing or damaged.
        """
        many = isinstance(audio, (list, tuple))
        texts = [transcript.text for transcript in self.transcripts(audio if many else [audio], sampling_rate)]
        return texts if many else texts[0]

    def transcripts(
        self, recordings: Iterable[Audio], sampling_rate: int = SAMPLE_RATE, heard: Callable[[float], None] | None = None
    ) -> Iterator[Transcript]:
        """Text with times for each recording, in order, as soon as it is there, in bounded memory. heard: called with the seconds
        of audio in each batch that is done.
        """
        transcript = Transcript()
        for group in self._groups(_pieces(recordings, sampling_rate, self.limit)):
            pieces = [piece for piece in group if piece is not None]
            texts = iter(self._read([piece.samples_n for piece in pieces], self.decode_conf, heard))
            for piece in group:
                if piece is not None:
                    transcript.add(piece.start, piece.end, next(texts), piece.overlaps)
                    continue
                yield transcript
                transcript = Transcript()

    def conversation(self, tools: Sequence[Callable] | str | Path = (), **options) -> Conversation:
        """A conversation of turns of text and audio, tools: functions that the LLM may call. options: as of chat.Conversation."""
        from steermoe.chat import Conversation

        return Conversation(self.network, tools, **{"decode_conf": self.decode_conf} | options)

    def chat(self, messages: Sequence, tools: Sequence[Callable] | str | Path = (), **options) -> Reply:
        """The answer to the last of some messages, in the form that transformers' chats have:

            [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What is this?"}]}]

        or to one turn of text (str) and audio (Path, or samples at 16 kHz): `[Path("a.wav"), "What is this?"]`. -> its text, the calls
        that were made on the way, how it ended. UserError for messages of another form, and as by `Conversation.say`.
        """
        from steermoe.chat.messages import split

        if not messages or not isinstance(messages[0], dict):
            return self.conversation(tools, **options).say(*messages)
        system, turns = split(messages)
        conversation = self.conversation(tools, **({} if system is None else {"system": system}) | options)
        conversation.resume(turns[:-1])
        return conversation.say(*turns[-1][1])

    def stream(self, chunks: Iterable[np.ndarray | Tensor]) -> Iterator[Partial]:
        """Text while audio arrives. chunks: samples at 16 kHz, float in [-1, 1] or int16, 1 to 3 s each.

        CTC alone reads, where the model has it: it needs no LLM's pass over the answer, so each chunk is answered soon.
        """
        ctc_weight = 1.0 if hasattr(self.network.projector, "hear") else 0.0
        conf = dataclasses.replace(self.decode_conf, ctc_weight=ctc_weight)
        stream = Stream(lambda samples_n: self._read([samples_n], conf)[0], self.limit)
        for chunk in chunks:
            arrived = time.monotonic()
            partial = stream.push(_samples(chunk))
            yield partial._replace(latency=time.monotonic() - arrived)
        arrived = time.monotonic()
        yield stream.finish()._replace(latency=time.monotonic() - arrived)

    def _groups(self, pieces: Iterable[Piece | None]) -> Iterator[list[Piece | None]]:
        """Pieces of about GROUP_BATCHES batches, so that those of a length are decoded together."""
        group, frames = [], 0.0
        for piece in pieces:
            group.append(piece)
            frames += (piece.end - piece.start) * self.frontend.frames_per_second if piece is not None else 0
            if frames >= GROUP_BATCHES * self.decode_conf.batch_frames:
                yield group
                group, frames = [], 0.0
        if group:
            yield group

    def _read(
        self, samples: Sequence[np.ndarray], conf: DecodeConf, heard: Callable[[float], None] | None = None
    ) -> list[str]:
        """The text of each of some stretches of audio within the limit."""
        import torch

        from steermoe.data.dataset import Example
        from steermoe.data.sampler import sorted_batches
        from steermoe.decode.decoder import decode_batch

        device = next(self.network.projector.parameters()).device
        examples = [Example("", self.frontend(torch.from_numpy(samples_n)), "", self.prompt) for samples_n in samples]
        costs = [max(len(example.feats_fm), self.network.encoder.min_frames) for example in examples]
        texts = [""] * len(samples)
        for indices in sorted_batches(costs, conf.batch_frames, conf.max_batch):
            batch = self._collator([examples[index] for index in indices]).to(device)
            seconds = [len(samples[index]) / SAMPLE_RATE for index in indices]
            for index, hypothesis in zip(indices, decode_batch(self.network, batch, seconds, conf)):
                texts[index] = " ".join(self.network.llm.decode(hypothesis.tokens).split())
            if heard is not None:
                heard(sum(seconds))
        return texts


def _pieces(recordings: Iterable[Audio], sampling_rate: int, limit: float) -> Iterator[Piece | None]:
    """Every recording's pieces, and None after each recording."""
    from steermoe.data.audio import load_blocks, resample
    from steermoe.data.segment import cut_at_pauses

    for audio in recordings:
        if isinstance(audio, (str, Path)):
            blocks = load_blocks(audio)
        elif isinstance(audio, Iterator):
            blocks = map(_samples, audio)
        else:
            samples_n = _samples(audio)
            blocks = iter([samples_n if sampling_rate == SAMPLE_RATE else resample(samples_n, sampling_rate, SAMPLE_RATE)])
        yield from cut_at_pauses(blocks, limit)
        yield None


def _samples(audio: np.ndarray | Tensor) -> np.ndarray:
    """float32 (N,). UserError for more than one channel, or samples that are not numbers of a known kind."""
    samples_n = audio if isinstance(audio, np.ndarray) else np.asarray(audio)
    if samples_n.ndim != 1:
        raise UserError(f"samples of shape {samples_n.shape}; one channel, (N,), is needed")
    if samples_n.dtype == np.int16:
        return samples_n.astype(np.float32) / 32768
    if not np.issubdtype(samples_n.dtype, np.floating):
        raise UserError(f"samples of type {samples_n.dtype}; float in [-1, 1] or int16 is needed")
    return np.ascontiguousarray(samples_n, dtype=np.float32)
