"""Whisper's token ids: the special ones by vocabulary size, text by a byte table, and what its decoder must not write.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", and the tokenizer published with it: the
byte-pair tokens come first (id = rank), then <|endoftext|>, <|startoftranscript|>, the languages, five task tokens,
<|notimestamps|> and the timestamps.
"""

from __future__ import annotations

import base64
import binascii
from functools import cached_property
from pathlib import Path
from typing import Iterable

from steermoe.errors import UserError
from steermoe.files import read_json, read_lines
from steermoe.registry import nearest

# In the order of their token ids; Cantonese came with large-v3.
LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy "
    "sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo "
    "uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
).split()
# Vocabulary size -> (number of byte-pair tokens, number of language tokens). All three end with 1501 timestamps.
SIZES = {51864: (50256, 99), 51865: (50257, 99), 51866: (50257, 100)}
ENGLISH_ONLY = 51864

# Written but not spoken (speaker tags, [noises], music), alone or after a space.
SYMBOLS = list("\"#()*+/:;<=>@[\\]^_`{|}~「」『』") + "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
MUSIC = "♩♪♫♬♭♮♯"  # tokenised into pieces: the first piece is forbidden


class WhisperTokens:
    """vocab_size: 51864 (English-only), 51865 or 51866 (large-v3). table: the bytes of every text token, in the order of ids."""

    def __init__(self, vocab_size: int, table: list[bytes]):
        count, languages = sizes(vocab_size)
        if len(table) != count:
            raise UserError(f"a vocabulary of {len(table)} text tokens; a Whisper model with {vocab_size} outputs has {count}")
        self.table = table
        self.english_only = vocab_size == ENGLISH_ONLY
        self.languages = LANGUAGES[:languages]
        self.end = count
        self.start = count + 1
        self.translate, self.transcribe, self.start_of_lm, self.start_of_prev, self.no_speech, self.no_timestamps = range(
            self.start + 1 + languages, self.start + 7 + languages
        )

    def prompt(self, language: str = "en", timestamps: bool = False) -> list[int]:
        """What the decoder is given before its first token: to transcribe this language. UserError for one it does not know."""
        ending = [] if timestamps else [self.no_timestamps]
        if self.english_only:
            if language != "en":
                raise UserError(f"language: this Whisper model knows English only, not {language!r}; take a multilingual one")
            return [self.start, *ending]
        if language not in self.languages:
            raise UserError(f"language: {language!r} is not one of Whisper's{nearest(language, list(self.languages))}")
        return [self.start, self.start + 1 + self.languages.index(language), self.transcribe, *ending]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; special tokens and timestamps are left out, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.table[i] for i in ids if 0 <= i < self.end).decode("utf-8", errors="replace")

    def encode_word(self, text: str) -> list[int]:
        """Byte-pair tokens of one word (no splitting at spaces): the pair with the lowest rank is merged first."""
        parts = [bytes([byte]) for byte in text.encode("utf-8")]
        while len(parts) > 1:
            ranks = [self._ids.get(left + right, self.end) for left, right in zip(parts, parts[1:])]
            first = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[first] == self.end:
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return [self._ids[part] for part in parts]

    @cached_property
    def suppressed(self) -> list[int]:
        """Never written: symbols that are not speech, and the special tokens other than the end."""
        # A hyphen or an apostrophe stays possible inside a word, not as a beginning.
        found = {self.encode_word(" -")[0], self.encode_word(" '")[0]}
        for symbol in [*SYMBOLS, *MUSIC]:
            for pieces in (self.encode_word(symbol), self.encode_word(" " + symbol)):
                if len(pieces) == 1 or symbol in MUSIC:
                    found.add(pieces[0])
        special = {self.start, self.translate, self.transcribe, self.start_of_lm, self.start_of_prev, self.no_speech}
        return sorted(found | special)

    @cached_property
    def suppressed_at_begin(self) -> list[int]:
        """Never written first: a blank, and the end."""
        return [self._ids[b" "], self.end]

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {token: number for number, token in enumerate(self.table)}


def sizes(vocab_size: int) -> tuple[int, int]:
    """(text tokens, languages) of a published vocabulary size; UserError for any other."""
    if vocab_size not in SIZES:
        known = ", ".join(map(str, SIZES))
        raise UserError(f"a Whisper model with {vocab_size} outputs: its special tokens are not known (known sizes: {known})")
    return SIZES[vocab_size]


def read_table(folder: str | Path, vocab_size: int) -> tuple[list[bytes], Path] | None:
    """The byte table in a model's folder and the file it came from, or None if there is no vocabulary file.

    Known: *.tiktoken (OpenAI), vocab.json or tokenizer.json (Hugging Face), vocabulary.json or vocabulary.txt (CTranslate2).
    Of several .tiktoken files the one with the right number of tokens is taken. UserError for a damaged or a wrong one.
    """
    count, _ = sizes(vocab_size)
    folder = Path(folder)
    others = [folder / name for name in ("vocab.json", "tokenizer.json", "vocabulary.json", "vocabulary.txt")]
    wrong = None
    for path in [*sorted(folder.glob("*.tiktoken")), *(path for path in others if path.is_file())]:
        table = _read_tiktoken(path) if path.suffix == ".tiktoken" else _read_listed(path, count)
        if len(table) == count:
            return table, path
        wrong = f"{path}: {len(table)} text tokens; a Whisper model with {vocab_size} outputs has {count}: not its vocabulary"
    if wrong:
        raise UserError(wrong)
    return None


def _read_tiktoken(path: Path) -> list[bytes]:
    """Lines `base64 id`, ids from 0 on without a gap."""
    table: list[bytes] = []
    for number, line in read_lines(path):
        try:
            token, rank = line.split(" ")
            table.append(base64.b64decode(token))
        except (ValueError, binascii.Error):
            raise UserError(f"{path}:{number}: not `base64 id`; fetch the file again") from None
        if rank != str(number - 1):
            raise UserError(f"{path}:{number}: id {rank}, {number - 1} was expected; fetch the file again")
    return table


def _read_listed(path: Path, count: int) -> list[bytes]:
    """Tokens in GPT-2's printable spelling of bytes: a JSON dictionary or list, or one a line; ids from `count` on left out."""
    if path.suffix == ".txt":
        tokens = [line for _, line in read_lines(path)][:count]
    else:
        content = read_json(path)
        if path.name == "tokenizer.json":
            content = content.get("model", {}).get("vocab", {})
        if isinstance(content, dict):
            by_id = {number: token for token, number in content.items()}
            content = [by_id[number] for number in range(count) if number in by_id]
        tokens = content[:count]
    try:
        return [bytes(_BYTES[character] for character in token) for token in tokens]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: {error} is not a byte in GPT-2's spelling; not a Whisper vocabulary") from None


def _printable_bytes() -> dict[str, int]:
    """GPT-2's spelling: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _printable_bytes()
