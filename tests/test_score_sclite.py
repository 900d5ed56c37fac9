"""Our reports against NIST's sclite as the referee: byte for byte the same sum, rsum, pralign and dtl reports.

Skipped where sclite (Debian: sctk) is not installed. Words of more than 40 bytes are left out: for a longer gap sclite prints
memory that lies before its row of stars.
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steermoe.score import read_trn, score, write_trn
from steermoe.score.sclite import find_program, run_sclite
from steermoe.score.units import LOCALES, Units

pytestmark = pytest.mark.skipif(find_program("sclite") is None, reason="sclite (Debian's package sctk) is not installed")
quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))

OPTIONS = [
    {},
    {"case_sensitive": True},
    {"unit": "char"},
    {"unit": "char", "keep_ascii": True},
    {"unit": "char", "delete_hyphens": True},
    {"unit": "char", "keep_ascii": True, "delete_hyphens": True},
    {"optional": True},
    {"fragments": True},
    {"optional": True, "fragments": True},
    {"unit": "char", "optional": True},
    {"unit": "char", "fragments": True},
]
VOCABULARIES = [
    ["a", "b"],
    ["a", "bb", "ccc", "Dddd", "e"],
    [f"w{number}" for number in range(40)],
    ["你", "好", "世", "界", "a"],
    ["é", "É", "你好", "ab你", "Zürich", "x-y", "-"],
]


def assert_same(folder, pairs: dict[str, tuple[str, str]], **options) -> None:
    """pairs: {id: (reference, hypothesis)}"""
    for name, side in (("ref", 0), ("hyp", 1)):
        file = folder / f"{name}.trn"
        write_trn(file, {utt: pair[side] for utt, pair in pairs.items()})
        file.write_bytes(file.read_bytes().decode().encode(options.get("encoding", "utf-8")))
    score(folder / "ref.trn", folder / "hyp.trn", out_dir=folder / "out", title="system", **options)
    wanted = run_sclite(folder / "ref.trn", folder / "hyp.trn", "system", Units(**options)).text
    got = (folder / "out" / "result.txt").read_bytes()
    got = got[-len(wanted) :]
    if got != wanted:
        different = [(w, g) for w, g in zip(wanted.split(b"\n"), got.split(b"\n")) if w != g]
        raise AssertionError(f"{len(different)} lines differ; sclite, then ours: {different[:3]}")


def words(draw: random.Random, vocabulary: list[str], count: int, marks: str = "", depth: int = 0) -> str:
    """A text. marks: any of { ( - @ * ; for alternations, optional words, fragments and sclite's other special words.

    Alternations are nested once at most: sclite overflows on deep ones."""
    out = []
    if "-" in marks:
        vocabulary = [word for word in vocabulary if word != "-"]  # nothing is left of "--" with DH: sclite falls over
    for _ in range(count):
        word, mark = draw.choice(vocabulary), draw.choice(marks) if marks and draw.random() < 0.2 else ""
        if mark == "{" and depth < 2:
            branches = [words(draw, vocabulary, draw.randint(1, 3), marks, depth + 1) for _ in range(draw.randint(1, 3))]
            word = "{ " + " / ".join(branches) + " }"
        elif mark and mark != "{":
            fragment = draw.choice([f"{word}-", f"-{word}", f"({word}-)"])
            word = {"(": f"({word})", "-": fragment, "@": "@", "*": f"{word}*", ";": f"{word};t"}[mark]
        out.append(word)
    return " ".join(out)


def noisy(draw: random.Random, vocabulary: list[str], reference: str) -> str:
    """A hypothesis for one path through the reference."""
    while "{" in reference:
        reference = re.sub(r"\{([^{}]*)\}", lambda inside: draw.choice(inside.group(1).split(" / ")), reference)
    out = []
    for word in reference.split():
        chance = draw.random()
        if chance < 0.7:
            out.append(word.strip("()"))
        elif chance < 0.8:
            out.append(draw.choice(vocabulary))
        elif chance < 0.9:
            out += [word, draw.choice(vocabulary)]
    return " ".join(out)


def generated(
    seed: int, count: int, longest: int, marks: str = "", vocabulary: list[str] | None = None
) -> dict[str, tuple[str, str]]:
    draw = random.Random(seed)
    chosen, pairs = draw.choice(VOCABULARIES), {}
    vocabulary = vocabulary or chosen
    speakers = draw.randint(1, 8)
    for number in range(count):
        reference = words(draw, vocabulary, draw.randint(0, draw.choice([3, longest])), marks)
        unrelated = draw.random() < 0.15
        hypothesis = words(draw, vocabulary, draw.randint(0, longest)) if unrelated else noisy(draw, vocabulary, reference)
        pairs[f"spk{draw.randint(1, speakers)}-{number:05d}"] = (reference, hypothesis)
    return pairs


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(map(str, options.values())) or "words")
def test_generated(tmp_path, options):
    for seed in range(2):
        assert_same(tmp_path, generated(seed, 40, 20), **options)
        assert_same(tmp_path, generated(seed, 40, 8, "{(-@*;"), **options)


def test_long_and_folded_lines(tmp_path):
    assert_same(tmp_path, generated(3, 12, 400))
    assert_same(tmp_path, {"a-1": ("word " * 400, "word " * 399), "a-2": ("x " * 333, "y " * 500)})


text = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="{}\\"), min_size=1, max_size=10),
    max_size=8,
).map(" ".join)


@quick
@given(st.lists(st.tuples(text, text), min_size=1, max_size=10), st.sampled_from(OPTIONS[:3]))
def test_any_characters(tmp_path_factory, pairs, options):
    pairs = [pair for pair in pairs if not any(side.startswith((";;", "**")) for side in pair)]  # comments
    pairs = [tuple(re.sub(r"(?<!\S);", "x", side) for side in pair) for pair in pairs]  # sclite looks before such a word
    if pairs:
        assert_same(tmp_path_factory.mktemp("any"), {f"s{n % 3}-{n}": pair for n, pair in enumerate(pairs)}, **options)


@pytest.mark.parametrize("locale", LOCALES)
def test_case_folding(tmp_path, locale):
    letters = "ABIİıiÇçĞğÖöŞşÜüĐđÁáẢảẠạĂăẮắÂâẤấỆệƠơỚớƯưỰựÝýĄąČčŽžАаӘәҚқҢңЁёÑñẼẽ"
    draw = random.Random(1)
    vocabulary = ["".join(draw.choice(letters) for _ in range(draw.randint(1, 4))) for _ in range(400)]
    pairs = {}
    for number in range(60):
        reference = [draw.choice(vocabulary) for _ in range(8)]
        hypothesis = [draw.choice([word, word.upper(), word.lower(), draw.choice(vocabulary)]) for word in reference]
        pairs[f"a-{number}"] = (" ".join(reference), " ".join(hypothesis))
    assert_same(tmp_path, pairs, locale=locale)
    assert_same(tmp_path, pairs, locale=locale, unit="char")


LANGUAGES = {
    "gbk": ["你", "好", "世界", "你好吗", "啊ab", "ABc", "x-y", "中国-人", "Ｂ", "丂", "乤", "丄", "A丄", "镕", "測試"],
    "euc_jp": ["日本", "語", "です", "カナ", "ab", "Ab", "x-y"],
    "euc_kr": ["한국", "말", "이", "ab", "AB", "다-라"],
    "latin_1": ["é", "É", "Zürich", "ZÜRICH", "ñandú", "x-ÿ", "a", "ß"],
    "babel_turkish": ["IŞIK", "ışık", "İstanbul", "ISTANBUL", "ÇİĞ", "çiğ", "Iı", "iİ", "ö-Ü", "I", "i", "İ", "ı"],
    "babel_vietnamese": ["Đường", "ĐƯỜNG", "Ấn", "ấn", "ngữ", "à-Ả", "Xin", "xin", "e\u0301", "E\u0301"],
    "babel_guarani": ["G\u0303", "ag\u0303a", "AG\u0303", "ñ", "Ñ", "ỹ-Ỹ", "g"],
    "generic": ["Đường", "đường", "ışık", "e\u0301", "😀", "𠀀", "a😀", "😀-b", "𐐀", "𐐨", "Ａ", "ａ"],
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_languages_and_encodings(tmp_path, name):
    """gbk: with letters as second bytes, which are no letters."""
    for seed, options in enumerate(OPTIONS):
        options = options | {"locale" if name in LOCALES else "encoding": name}
        marks = "-@*;" if options.get("unit") == "char" else "{(-@*;"
        assert_same(tmp_path, generated(seed, 20, 8, marks, LANGUAGES[name]), **options)


@pytest.mark.parametrize(
    "pairs",
    [
        {"a-1": ("", "")},
        {"a-1": ("", "x")},
        {"a-1": ("", "x"), "b-1": ("p q r", "p q"), "c-1": ("", "t"), "d-1": ("k k", "k"), "e-1": ("", "")},
        {f"s{number}-1": ("a b", "a") for number in range(60)},
        {"Ab-X1": ("a B c", "A b D"), "aB-X2": ("E", "e")},
        {"ab_c-x": ("a", "a"), "ab_d": ("a", "b")},
        {"a-1": ("@ a @ b", "a @ b @"), "a-2": ("@", ""), "a-3": ("x", "@")},
        {"a-1": ("p ; x", "p x"), "a-2": (r"\a b\;c d;e;f", "a b d")},
        {"a-1": ("{a/b}c {x y/{u/v} w/@}", "b c v w")},
        {"a-1": ("(um) hi", "hi")},
    ],
)
def test_corners(tmp_path, pairs):
    for options in OPTIONS[:3]:
        assert_same(tmp_path, pairs, **options)


def test_rounding(tmp_path):
    for seed in range(6):
        draw = random.Random(seed)
        size = draw.choice([8, 16, 40, 80, 400, 800])
        pairs = {}
        for number in range(draw.randint(1, 6)):
            right, more = draw.randint(0, size), draw.randint(0, 5)
            pairs[f"s{number % 3}-{number}"] = ("a " * size, "a " * right + "b " * more)
        assert_same(tmp_path, pairs)
    for size, more in ((16, 17), (40, 41), (2000, 2001)):  # accuracies just below zero
        assert_same(tmp_path, {"a-1": ("a " * size, ""), "b-1": ("", "b " * (more - size))})


def test_engine_sclite_gives_the_same_numbers(tmp_path):
    pairs = generated(11, 50, 12, "{@")
    for name, side in (("ref", 0), ("hyp", 1)):
        write_trn(tmp_path / f"{name}.trn", {utt: pair[side] for utt, pair in pairs.items()})
    files = tmp_path / "ref.trn", tmp_path / "hyp.trn"
    for unit in ("word", "char"):
        own = score(*files, unit, "none", tmp_path / "own", title="t")
        theirs = score(*files, unit, "none", tmp_path / "theirs", title="t", engine="sclite")
        assert own == theirs
        reports = [(tmp_path / name / "result.txt").read_text().replace("by sclite", "as sclite") for name in ("own", "theirs")]
        assert reports[0] == reports[1]
    assert len(read_trn(tmp_path / "theirs" / "hyp.norm.trn")) == 50


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.sampled_from(sorted(LANGUAGES)), st.sampled_from(OPTIONS), st.sampled_from(["", "{(-@*;"]))
def test_two_thousand_pairs_in_many_languages(tmp_path_factory, seed, name, options, marks):
    options = options | {"locale" if name in LOCALES else "encoding": name}
    if options.get("unit") == "char":
        marks = marks.replace("{(", "")  # there sclite may take all memory and all night
    assert_same(tmp_path_factory.mktemp("languages"), generated(seed, 20, 8, marks, LANGUAGES[name]), **options)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.sampled_from(OPTIONS), st.sampled_from(["", "{", "{(-@*;"]), st.sampled_from([5, 20, 60]))
def test_ten_thousand_pairs(tmp_path_factory, seed, options, marks, longest):
    assert_same(tmp_path_factory.mktemp("pairs"), generated(seed, 50, 5 if "(" in marks else longest, marks), **options)
