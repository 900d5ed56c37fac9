"""Text normalisers for scoring, by name, and the units that are scored.

none      the text as it is
english   Whisper's evaluation normaliser: transformers' own class, with OpenAI's spelling table. transformers does not ship that
          table (it comes with each checkpoint); it is read from the package `whisper-normalizer`, whose english.json is the same
          file, byte for byte, as the one in openai-whisper.
chinese   full width to half width, digits read out in characters, punctuation removed, Latin letters in lower case, spaces kept
          between Latin words only
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import unicodedata
from pathlib import Path
from typing import Callable

from steermoe.errors import UserError
from steermoe.registry import nearest

NAMES = ("none", "english", "chinese")
UNITS = ("word", "char")

SPACE = " \t\n\r\v\f"  # what C's isspace knows: an ideographic or no-break space is a character of its word
_ALTERNATION = re.compile(r"[{}]|(?<=\s)/(?=\s)|(?<!\S)@(?!\S)")


def get_normalizer(name: str) -> Callable[[str], str]:
    """The normaliser called `name`: text -> text. UserError for an unknown name or a missing package."""
    if name not in NAMES:
        raise UserError(f"normalizer: {name!r} is unknown{nearest(name, list(NAMES))}")
    return {"none": _same, "english": _english, "chinese": lambda: normalize_chinese}[name]()


def split_units(text: str, unit: str) -> list[str]:
    """The words of a text, or its characters without spaces.

    unit: "word" or "char". Words end at ASCII white space only, as in sclite.
    """
    if unit not in UNITS:
        raise UserError(f"unit: {unit!r} is unknown{nearest(unit, list(UNITS))}")
    words = [word.decode() for word in text.encode().split()]
    return words if unit == "word" else list("".join(words))


def normalize_marked(text: str, normalizer: Callable[[str], str]) -> str:
    """Normalises what stands between sclite's marks { / } @, so that alternations survive the removal of punctuation."""
    if "{" not in text:
        return normalizer(text)
    pieces, start = [], 0
    for mark in _ALTERNATION.finditer(text):
        pieces += [normalizer(text[start : mark.start()]).strip(), mark.group()]
        start = mark.end()
    pieces.append(normalizer(text[start:]).strip())
    return " ".join(piece for piece in pieces if piece)


def _same() -> Callable[[str], str]:
    return lambda text: text


@functools.cache
def _english() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    package = importlib.util.find_spec("whisper_normalizer")
    table = Path(package.origin).parent / "normalizers" / "english.json" if package and package.origin else None
    if table is None or not table.is_file():
        raise UserError("normalizer: 'english' needs the spelling table of whisper-normalizer: pip install whisper-normalizer")
    return EnglishTextNormalizer(json.loads(table.read_text(encoding="utf-8")))


DIGITS = "零一二三四五六七八九"
_LARGE = ("", "万", "亿", "万亿")
_LATIN = r"[a-z0-9\u00c0-\u024f]"
_NUMBER = re.compile(r"(?<![0-9.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?%?")


def normalize_chinese(text: str) -> str:
    """See the module's description. 2021年 is read digit by digit, 5% as 百分之五, 3.14 as 三点一四, 120 as 一百二十; numbers with a
    leading zero or more than eight digits (telephone numbers) digit by digit."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"[0-9]{4}(?=\s*年)", lambda year: _one_by_one(year.group()), text)
    text = _NUMBER.sub(lambda number: _read_number(number.group()), text)
    text = "".join(character if _kept(character) else " " for character in text)
    text = re.sub(rf"(?<={_LATIN})\s+(?={_LATIN})", "\0", text)
    return re.sub(r"\s+", "", text).replace("\0", " ")


def _kept(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _one_by_one(digits: str) -> str:
    return "".join(DIGITS[int(digit)] for digit in digits)


def _read_number(text: str) -> str:
    percent, text = text.endswith("%"), text.rstrip("%").replace(",", "")
    minus, text = text.startswith("-"), text.lstrip("-")
    whole, _, fraction = text.partition(".")
    spoken = _one_by_one(whole) if len(whole) > 8 or (whole.startswith("0") and len(whole) > 1) else read_cardinal(int(whole))
    if fraction:
        spoken += "点" + _one_by_one(fraction)
    return ("负" if minus else "") + ("百分之" if percent else "") + spoken


def read_cardinal(number: int) -> str:
    """0 <= number < 10^16 in characters: 10 十, 105 一百零五, 20300 二万零三百."""
    if number == 0:
        return DIGITS[0]
    groups, spoken, gap = [], "", False
    while number:
        number, group = divmod(number, 10000)
        groups.append(group)
    for power in range(len(groups) - 1, -1, -1):
        group = groups[power]
        if not group:
            gap = True
            continue
        if spoken and (gap or group < 1000):
            spoken += DIGITS[0]
        spoken += _read_group(group) + _LARGE[power]
        gap = False
    return spoken[1:] if spoken.startswith("一十") else spoken


def _read_group(group: int) -> str:
    spoken, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = group // unit % 10
        if digit:
            spoken += (DIGITS[0] if gap and spoken else "") + DIGITS[digit] + name
            gap = False
        else:
            gap = True
    return spoken
