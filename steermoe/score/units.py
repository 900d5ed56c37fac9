"""What is compared: the words or characters of a text, case folding, and whether a text needs sclite's markup."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

from steermoe.errors import UserError
from steermoe.registry import nearest
from steermoe.score import network

# Letters that sclite's localizations fold besides ASCII's, in upper case; the lower case is Unicode's but for Turkish I.
LOCALES = {
    "generic": "",
    "babel_turkish": "ÇÖÜİIĞŞ",
    "babel_vietnamese": "ĐÁÀẢÃẠĂẮẰẲẴẶÂẤẦẨẪẬÉÈẺẼẸÊẾỀỂỄỆÍÌỈĨỊÓÒỎÕỌƠỚỜỞỠỢÔỐỒỔỖỘÚÙỦŨỤƯỨỪỬỮỰÝỲỶỸỴ",
    "babel_lithuanian": "ĄČĘĖĮŠŲŪŽ",
    "babel_kurmanji": "ÇÊÎÛŞ",
    "babel_cebuano": "Ñ",
    "babel_kazakh": "АӘБВГҒДЕЁЖЗИЙКҚЛМНҢОӨПРСТУҰҮФХҺЦЧШЩЪЫІЬЭЮЯ",
    "babel_mongolian": "ЁАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯҮӨ",
    "babel_guarani": "ÃÁẼÉĨÍÕÓŨÚỸÝÑ",
}
# Encodings of trn files: what sclite's -e calls them. Its "gb" and "euc" are one: two bytes make a character where the first has
# its high bit set; without -e every byte is a character. Characters that sclite breaks (GBK's with "\\" or "{" as second byte, JIS
# X 0212's three bytes) stay whole here.
ENCODINGS = {"utf-8": "utf-8", "gbk": "gb", "euc_jp": "euc", "euc_kr": "euc", "latin_1": None}
_TURKISH = {"İ": "i", "I": "ı"}
_SPECIAL = re.compile(rb"[{@]")  # words that need a network


@dataclass(frozen=True)
class Units:
    """unit: word | char. case_sensitive: sclite -s. locale: letters beyond ASCII that fold too (sclite -e utf-8 LOCALE).
    markup: whether { / } @ ; * are read as sclite reads them. optional, fragments: sclite -D, -F.
    keep_ascii, delete_hyphens: for characters, keep runs of ASCII whole (-c NOASCII), drop hyphens inside words (-c DH).
    encoding: of the trn files, and of the report on them; everything between is UTF-8 (sclite -e)."""

    unit: str = "word"
    case_sensitive: bool = False
    locale: str = "generic"
    markup: bool = True
    optional: bool = False
    fragments: bool = False
    keep_ascii: bool = False
    delete_hyphens: bool = False
    encoding: str = "utf-8"

    def __post_init__(self):
        if self.unit not in ("word", "char"):
            raise UserError(f"unit: {self.unit!r} is unknown{nearest(self.unit, ['word', 'char'])}")
        if self.locale not in LOCALES:
            raise UserError(f"locale: {self.locale!r} is unknown{nearest(self.locale, list(LOCALES))}")
        if self.encoding not in ENCODINGS:
            raise UserError(f"encoding: {self.encoding!r} is unknown{nearest(self.encoding, list(ENCODINGS))}")
        if self.locale != "generic" and self.encoding != "utf-8":
            raise UserError(f"locale: sclite folds the letters of {self.locale} in UTF-8 only; convert the files or leave it out")
        whole = []  # what is one character though Python counts more
        if self.locale == "babel_guarani":
            whole.append("[Gg]\u0303")
        if self.keep_ascii:  # sclite takes any byte for ASCII where a character is a byte
            ascii_range = r"\x00-\xff" if self.encoding == "latin_1" else r"\x00-\x7f"
            whole.append("".join(["(?:", *(f"(?!{other})" for other in whole), f"[{ascii_range}])+"]))
        object.__setattr__(self, "_characters", re.compile("|".join([*whole, "."]), re.DOTALL) if whole else None)
        pairs = [(letter, _TURKISH.get(letter, letter.lower())) for letter in LOCALES[self.locale]]
        object.__setattr__(self, "_to_lower", str.maketrans(dict(pairs)))
        ascii_pairs = zip(ascii_lowercase, ascii_uppercase)
        object.__setattr__(self, "_to_upper", str.maketrans(dict(ascii_pairs) | {lower: upper for upper, lower in pairs}))

    def lower(self, text: str) -> bytes:
        """UTF-8, folded unless case matters."""
        if self.case_sensitive:
            return text.encode()
        return (text.translate(self._to_lower) if self._to_lower else text).encode().lower()

    def lower_all(self, texts: list[str]) -> list[bytes]:
        """lower() of many texts at once."""
        joined = self.lower("\n".join(texts)).split(b"\n")
        return joined if len(joined) == len(texts) else [self.lower(text) for text in texts]

    def upper(self, word: bytes, encoding: str = "utf-8") -> bytes:
        """How a word in error is shown. encoding: the word's own."""
        return word.decode(encoding).translate(self._to_upper).encode(encoding)

    def split(self, word: bytes) -> list[bytes]:
        """The characters of a word."""
        pieces = self._characters.findall(word.decode()) if self._characters else word.decode()
        if self.delete_hyphens:
            pieces = [piece for piece in (piece.replace("-", "") for piece in pieces) if piece]
        return [piece.encode() for piece in pieces]

    def literal(self, text: bytes) -> list[bytes]:
        """Words or characters of a folded text, taken as they stand."""
        words = text.split()
        return words if self.unit == "word" else [piece for word in words for piece in self._pieces(word)]

    def _pieces(self, word: bytes) -> list[bytes]:
        return self.split(word) if len(word) > 1 else [word]

    def plain(self, text: bytes) -> list[bytes] | None:
        """Words or characters of a folded text, or None if it has to be read as a network."""
        if not self.markup:
            return self.literal(text)
        if _SPECIAL.search(text) or (self.optional and b"(" in text) or (self.fragments and b"-" in text):
            return None
        words = [network.plain_value(word) for word in text.split()]
        return words if self.unit == "word" else [piece for word in words for piece in self._pieces(word)]

    def spaced_all(self, texts: list[bytes]) -> list[bytes | None]:
        """Folded texts with one space behind each word or character; None for those that hold any of sclite's marks."""
        joined = b"\n".join(texts)
        marks = (rb"{@;\*" + b"(" * self.optional + b"-" * self.fragments) if self.markup else b""
        if any(bytes([mark]) in joined for mark in marks):
            pattern = re.compile(b"[%s]" % re.escape(marks))
            return [None if pattern.search(text) else self._spaced(text) for text in texts]
        if self.unit == "word" and not any(mark in joined for mark in (b"\t", b"\r", b"\v", b"\f")):
            # one search finds two spaces, and one at either end of a text; an empty text looks like that too
            if b"  " not in b"".join([b" ", b" ".join([text for text in texts if text]), b" "]):
                return [text + b" " if text else text for text in texts]
        return [self._spaced(text) for text in texts]

    def _spaced(self, text: bytes) -> bytes:
        if self.unit == "char" and not (self._characters or self.delete_hyphens):
            joined = b" ".join(text.split()).decode().replace(" ", "")
            return (" ".join(joined) + " ").encode() if joined else b""
        return b"".join(word + b" " for word in self.literal(text))

    def network(self, text: bytes) -> network.Network:
        """The network of any folded text; one whose braces are no markup is taken literally."""
        if self.markup and network.is_balanced(text):
            return network.build(text, network.Markup(self.optional, self.fragments, self.split if self.unit == "char" else None))
        linear = network.Network()
        for word in self.literal(text):
            linear.append(network.Word(word, word))
        return linear
