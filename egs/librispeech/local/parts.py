"""LibriSpeech's parts: where each is published (OpenSLR 12 and 31), what checks it, and which of them a run takes."""

from __future__ import annotations

import re
from typing import NamedTuple

from steermoe.data.openslr import Archive
from steermoe.errors import UserError
from steermoe.registry import nearest

CORPUS = "a folder that holds LibriSpeech's parts (train-clean-100/, dev-clean/, …)"


class Part(NamedTuple):
    resource: int  # the number at OpenSLR
    md5: str  # of NAME.tar.gz, as in OpenSLR's md5sum.txt
    utterances: int


PARTS = {
    "train-clean-100": Part(12, "2a93770f6d5c6c964bc36631d331a522", 28539),
    "train-clean-360": Part(12, "c0e676e450a7ff2f54aeade5171606fa", 104014),
    "train-other-500": Part(12, "d1a0fd59409feb2c614ce4d30c387708", 148688),
    "dev-clean": Part(12, "42e2234ba48799c1f50f24a7926300a1", 2703),
    "dev-other": Part(12, "c8d0bcc9cca99d4f8b62fcc847357931", 2864),
    "test-clean": Part(12, "32fa31d27d2e1cad72775fee3f4849a9", 2620),
    "test-other": Part(12, "fb5a50374b501bb3bac4815ee91d3135", 2939),
    "train-clean-5": Part(31, "5df7d4e78065366204ca6845bb08f490", 1519),
    "dev-clean-2": Part(31, "6d7ab67ac6a1d2c993d050e16d61080d", 1089),
}
SETTINGS = {
    "460h": ["train-clean-100", "train-clean-360"],
    "960h": ["train-clean-100", "train-clean-360", "train-other-500"],
}
NAME = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")  # excerpts have parts of their own, such as train-clean


def resolve(words: str) -> tuple[list[str], list[str]]:
    """--parts as it was given -> the parts named, 460h and 960h written out; the dev and test parts added where none is named."""
    named: list[str] = []
    for word in words.split():
        named += SETTINGS.get(word, [word])
    for part in named:
        if not NAME.fullmatch(part):
            raise UserError(
                f"--parts: {part!r} is no part of LibriSpeech{nearest(part, [*PARTS, *SETTINGS])}; they are {' '.join(PARTS)}; "
                "460h and 960h mean the training parts of that many hours"
            )
    if not any(part.startswith("train-") for part in named):
        raise UserError(f"--parts {words!r} names no train part; add one, such as train-clean-100")
    mini = all(PARTS[part].resource == 31 for part in named if part in PARTS and part.startswith("train-"))
    added: list[str] = []
    if not any(part.startswith("dev-") for part in named):
        added += ["dev-clean-2"] if mini else ["dev-clean", "dev-other"]
    if not any(part.startswith("test-") for part in named):
        added += ["test-clean"] if mini else ["test-clean", "test-other"]
    return list(dict.fromkeys(named)), added


def archives(parts: list[str]) -> list[Archive]:
    """What has to be fetched. UserError for a part that is not published."""
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts: {part!r} is not published{nearest(part, list(PARTS))}; the parts are: {' '.join(PARTS)}")
    return [Archive(f"{PARTS[part].resource}/{part}.tar.gz", PARTS[part].md5, f"LibriSpeech/{part}") for part in parts]
