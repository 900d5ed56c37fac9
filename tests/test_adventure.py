"""egs/adventure: two games' files, built here, to recordings with the games' own texts; what is dropped; broken files."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipes import ROOT, Copy, contents, load_script

from steermoe.data.kaldi_dir import DataDir, validate
from steermoe.errors import UserError

DOWNLOAD = ROOT / "egs/adventure/local/download.sh"
NEIGHBOURS = ("queen", "sky", "rnc", "game")


@pytest.fixture(scope="module")
def prep():
    module = load_script("adventure/local/data_prep.py")
    yield module
    for name in NEIGHBOURS:  # other recipes may have scripts of these names
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def rnc(prep):
    return sys.modules["rnc"]


# --- the games' files -----------------------------------------------------------------------------------------------------


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(0.3 * np.arange(round(11025 * seconds)))).astype(np.float32)


def mp3(seconds: float) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, tone(seconds), 11025, format="MP3", subtype="MPEG_LAYER_III")
    return stream.getvalue()


def queen_file(files: dict[str, bytes]) -> bytes:
    at, table, body = 15 + 21 * len(files), b"", b""
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, at + len(body), len(content))
        body += content
    return b"QTBLCEM10\0\0\0\0" + struct.pack(">H", len(files)) + table + body


class Strings:
    """Strings of a dialogue or a cut scene, at their place in the file."""

    def __init__(self, content: bytes):
        self.content = content

    def add(self, text: str, align: int, before: bytes = b"") -> int:
        self.content += before
        at = len(self.content)
        self.content += bytes([len(text)]) + text.encode("latin-1")
        if text:
            self.content += bytes(-len(self.content) % align)
        return at


def dialogue(key: int, greeting: str, joe: dict[int, str], person: dict[int, str], again: tuple[str, str]) -> bytes:
    levels = 2
    made = Strings(bytes(32 + 96 * levels) + struct.pack(">HH", 0, 0 if greeting else 1))
    if greeting:
        made.add(greeting, 4)
    for node, text in joe.items():
        made.add(text, 4, struct.pack(">HH", 0, node))
    person_at = len(made.content)
    for node, text in person.items():
        made.add(text, 4, struct.pack(">HH", 0, node))
    again_at = made.add(again[0], 2)
    made.add(again[1], 2)
    head = struct.pack(">h4H12x3H4x", -levels, 9, key, len(joe), len(person), person_at, 0, again_at)
    return b"AmBk" + bytes(16) + head + made.content[32:]


def scene(texts: list[str]) -> bytes:
    made = Strings(bytes(40))
    at = made.add("", 2)
    for text in texts:
        made.add(text, 2)
    return b"AmBk" + bytes(16) + struct.pack(">HhHHH", 0, -len(texts), 0, 0, at) + made.content[10:]


class Packer:
    """RNC with fixed codes of five bits for 17 symbols; words lie where the unpacking program reads them."""

    def __init__(self):
        self.out, self.count = bytearray(), 0

    def put(self, value: int, bits: int) -> None:
        for index in range(bits):
            if self.count % 16 == 0:
                self.at = len(self.out)
                self.out += b"\0\0"
            self.out[self.at + self.count % 16 // 8] |= (value >> index & 1) << self.count % 8
            self.count += 1

    def table(self) -> None:
        self.put(17, 5)
        for _ in range(17):
            self.put(5, 4)

    def number(self, value: int) -> None:
        symbol = value.bit_length()
        self.put(int(f"{symbol:05b}"[::-1], 2), 5)
        if symbol > 1:
            self.put(value - (1 << (symbol - 1)), symbol - 1)


def packed(rnc, *blocks: list[tuple[bytes, int, int]]) -> tuple[bytes, bytes]:
    """blocks of (bytes as they stand, how far back, how many again); of a block's last only the bytes. (packed, what it means)"""
    packer, plain = Packer(), bytearray()
    packer.put(0, 2)
    for block in blocks:
        for _ in range(3):
            packer.table()
        packer.put(len(block), 16)
        for index, (literal, back, count) in enumerate(block):
            packer.number(len(literal))
            packer.out += literal
            plain += literal
            if index + 1 < len(block):
                packer.number(back - 1)
                packer.number(count - 2)
                for _ in range(count):
                    plain.append(plain[-back])
    head = struct.pack(">4sIIHHBB", b"RNC\1", len(plain), len(packer.out), rnc.crc16(plain), 0, 0, len(blocks))
    return head + packer.out, bytes(plain)


def speech(rnc, seconds: float) -> bytes:
    samples = np.round(127 * tone(seconds) + 128).astype(np.uint8).tobytes()
    return b"\x81" + bytes(21) + packed(rnc, *([(samples[at : at + 30000], 0, 0)] for at in range(0, len(samples), 30000)))[0]


def section(sky, texts: list[str]) -> bytes:
    """Text i of 32 may be longer than 254 bits: its length is counted in 16 bits then."""
    codes = {character: code for code, character in sky.CODE.items()} | {"#": "11111111111110"}
    bits, lengths, blocks = "", [], []
    for index, text in enumerate(texts):
        if index % 32 == 0:
            blocks.append(0)
        its = "".join(codes[character] for character in text) + codes[""]
        its += "0" * (-len(its) % (2 if len(its) < 250 else 16))
        lengths.append(len(its) // 2 if len(its) < 250 else 0x80 | len(its) // 16)
        blocks[-1] += len(its) // 2
        bits += its
    bits += "0" * (-len(bits) % 8)
    head = struct.pack("<2H", 4 + 2 * len(blocks), 4 + 2 * len(blocks) + len(lengths))
    packed_bits = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return head + struct.pack(f"<{len(blocks)}H", *blocks) + bytes(lengths) + packed_bits


def write_sky(folder: Path, files: dict[int, bytes]) -> Path:
    """Every second file begins at a multiple of 16, and its offset is written as such."""
    folder.mkdir(parents=True, exist_ok=True)
    disk, index = bytes(100), struct.pack("<I", len(files))
    for order, (number, content) in enumerate(files.items()):
        disk += bytes(-len(disk) % 16 if order % 2 else 1)
        offset = 0x800000 | len(disk) >> 4 if order % 2 else len(disk)
        index += struct.pack("<H", number) + offset.to_bytes(3, "little") + (2 << 22 | len(content)).to_bytes(3, "little")
        disk += content
    (folder / "sky.dsk").write_bytes(disk)
    (folder / "sky.dnr").write_bytes(index)
    return folder / "sky.dnr"


# --- Flight of the Amazon Queen -------------------------------------------------------------------------------------------


def queen_texts(prep, folder: Path, files: dict[str, bytes], *names: str) -> dict[str, tuple[str, str | None]]:
    path = folder / "queen.1c"
    path.write_bytes(queen_file(files | {f"{name}.SB": b"" for name in names}))
    return {clip.key: (clip.speaker, clip.text) for clip in prep.queen.clips(path)}


def test_a_recordings_name_leads_to_its_sentence(prep, tmp_path):
    talk = dialogue(
        7,
        "Bob, I'm back!*04And I managed it.*03",
        {6: "Any questions?*XY00(128,112)*02No.", 0xA7: "Get rid of *04*03rashes", 6 + 32: ""},
        {6: "What?", 0x403: "You!*01Ha.", 10: "First.", 11: "Odd"},
        ("Hello again Joe.", "Howdy Bob.*02"),
    )
    found = queen_texts(
        prep,
        tmp_path,
        {"BOB2.DOG": talk, "OTHER.PCX": b"picture"},
        *("07SSSSJ1", "07SSSSJ2", "070006J1", "070006J3", "0700A7J1", "0700A7J3", "070006P1", "070403P2", "07000BP1", "07XXXXP1"),
        *("07XXXXJ1", "07XXXXJ2", "89SSSSSS"),
    )
    assert found == {
        "07ssssj1": ("joe", "Bob, I'm back!"),
        "07ssssj2": ("joe", "And I managed it."),
        "070006j1": ("joe", "Any questions?"),
        "070006j3": ("joe", "No."),
        "0700a7j1": ("joe", "Get rid of"),
        "0700a7j3": ("joe", "rashes"),
        "070006p1": ("bob", "What?"),
        "070403p2": ("bob", "Ha."),
        "07000bp1": ("bob", "Odd"),
        "07xxxxp1": ("bob", "Hello again Joe."),
        "07xxxxj1": ("joe", "Howdy Bob."),
        "07xxxxj2": ("unknown", None),
        "89ssssss": ("unknown", None),
    }


def test_of_two_lines_of_a_node_the_game_takes_the_first_and_greetings_may_be_missing(prep, tmp_path):
    talk = Strings(dialogue(12, "", {5: "One."}, {}, ("", "Well.")))
    found = queen_texts(prep, tmp_path, {"AL.DOG": talk.content}, "120005J1", "12SSSSJ1", "12XXXXP1", "12XXXXJ1")
    assert [found[key][1] for key in ("120005j1", "12ssssj1", "12xxxxp1", "12xxxxj1")] == ["One.", None, None, "Well."]
    twice = prep.queen.dialogue("al", dialogue(12, "", {5: "One.", 6: "Two."}, {}, ("", ""))[20:].replace(b"\0\6", b"\0\5"))
    assert [text for name, _, text in twice if name == "120005J"] == ["One."]


def test_scenes_and_what_joe_thinks(prep, tmp_path):
    remarks = ["Neat*02", "Cute*02*14Wow", "open", "to", "It's stuck*03", "No way*14Really"]
    files = {
        "C5C.CUT": scene(["*", "Hey!*14Look out!", "**Stop*01"]),
        "QUEEN2.JAS": "\r\n".join(remarks).encode() + b"\r\n" * 50,
    }
    names = ("C5C__022", "C5C__033", "C5C__011", "JOE00411", "JOE00423", "JOE00011", "JOE00022")
    found = queen_texts(prep, tmp_path, files, *names)
    assert found["c5c__022"] == ("scenes", "Look out!") and found["c5c__011"] == ("unknown", None)
    assert [found[key] for key in ("joe00411", "joe00423", "joe00011", "joe00022")] == [
        ("joe", text) for text in ("Neat", "Wow", "It's stuck", "Really")
    ]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"ZIP" + data[3:], "does not begin with QTBL"),
        (lambda data: data[:-5], "entry 1 ends at"),
        (lambda data: data[:30], "requires a buffer"),
        (lambda data: data.replace(b"C1A.CUT", b"/C1A.SB"), "entry 1 is called '/C1A.SB'"),
        (lambda data: data.replace(b"AmBk", b"Amos"), "does not begin with AmBk"),
        (lambda data: data.replace(b"\r\nto\r\n", b"\r\nat\r\n"), "not in list"),
    ],
)
def test_another_file_than_queen(prep, tmp_path, damage, says):
    data = queen_file({"QUEEN2.JAS": b"Neat\r\nto\r\nNo", "C1A.CUT": scene(["Yes"])})
    path = tmp_path / "queen.1c"
    path.write_bytes(data)
    assert prep.queen.clips(path) == []
    path.write_bytes(damage(data))
    with pytest.raises(UserError, match=f"queen.1c: not the game's, or cut short .*{says}.*run stage -1 again"):
        prep.queen.clips(path)


# --- Beneath a Steel Sky --------------------------------------------------------------------------------------------------


def test_packed_bytes_come_back_and_damaged_ones_do_not(rnc):
    chance = np.random.default_rng(1)
    plain = chance.bytes(700)
    first = [(plain[:5], 3, 9), (b"", 14, 2), (plain[5:300], 1, 40), (plain[300:301], 0, 0)]
    blocks = [first, [(plain[301:], 700, 300), (b"", 0, 0)]]
    data, wanted = packed(rnc, *blocks)
    assert rnc.unpack(data + b"more") == wanted and len(wanted) == 700 + 9 + 2 + 40 + 300
    assert rnc.crc16(b"123456789") == 0xBB3D  # the check value of CRC-16/ARC
    turned, another_length = data[:60] + b"\xff" + data[61:], data[:4] + b"\0" * 4 + data[8:]
    for damaged in (data[:-100], data[:10], b"RNC\2" + data[4:], turned, another_length):
        with pytest.raises(ValueError, match="packed data"):
            rnc.unpack(damaged)


def test_the_code_is_one_that_can_be_read(prep):
    codes = sorted(prep.sky.CODE)
    assert not any(after.startswith(code) for code, after in zip(codes, codes[1:]))
    assert prep.sky.decode("1111010111000010011010101110100001001000010101100001001101010111001010000000") == "What's that?"
    assert prep.sky.decode("11110101110") is None  # no end


def test_a_recordings_number_leads_to_its_text(prep, rnc, tmp_path):
    long = "A very long text of the game, as some are. " * 3
    first = [f"Text number {'I' * index}." for index in range(40)]
    first[1], first[3] = long, "Three # signs"
    files = {
        60600: section(prep.sky, first),
        60601: section(prep.sky, ["Of the next section!"]),
        50001: speech(rnc, 0.2),
        50000: speech(rnc, 0.5),
        50003: speech(rnc, 0.1),
        50039: speech(rnc, 0.1),
        50002: bytes(22) + b"picture",
        50600: speech(rnc, 3.0),
        50700: speech(rnc, 0.1),
        59500: speech(rnc, 0.1),
        123: b"another",
    }
    clips = prep.sky.clips(write_sky(tmp_path, files))
    assert {clip.key: clip.text for clip in clips} == {
        "50000": "Text number .",
        "50001": long,
        "50003": None,
        "50039": first[39],
        "50600": "Of the next section!",
        "50700": None,
    }
    assert {clip.speaker for clip in clips} == {""}
    assert np.abs(clips[0].samples() - tone(0.5)).max() < 0.02 and len(clips[4].samples()) == 33075


def test_other_files_than_sky(prep, tmp_path):
    path = write_sky(tmp_path, {60600: section(prep.sky, ["One."])})
    index, disk = path.read_bytes(), (tmp_path / "sky.dsk").read_bytes()
    path.write_bytes(index[:9])
    with pytest.raises(UserError, match="sky.dnr: not the game's, or cut short"):
        prep.sky.clips(path)
    path.write_bytes(index)
    (tmp_path / "sky.dsk").write_bytes(disk[:-1])
    with pytest.raises(UserError, match="sky.dsk: not the game's, or cut short .*file 60600 ends behind them"):
        prep.sky.clips(path)
    (tmp_path / "sky.dsk").unlink()
    with pytest.raises(UserError, match="no sky.dsk beside it"):
        prep.sky.clips(path)


# --- sets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Thanks for the INFORMATION, Mr King...", "thanks for the information mister king"),
        ("I'll get 'em, `til it's \"fixed\"!", "i'll get 'em 'til it's fixed"),
        ("It's titled 'PUSSIES ON PARADE'!", "it's titled pussies on parade"),
        ("An anti-stress circuit - of the C.I.A.?", "an anti stress circuit of the c i a"),
        ("He discovered it in 1844.", None),
        ("(sigh)", None),
        ("<gulp> Well", None),
        ("Treatment^_.", None),
        ("Chunga unga!", None),
        ("Ooop oop!", None),
        ("Mmmmft!", None),
        ("Hmm, grrblt.", None),
        ("...", None),
    ],
)
def test_text_that_a_recogniser_could_hear(prep, written, spoken):
    assert (prep.spoken_text(written) or None) == spoken


NUMBERS = "one two three four five six seven eight nine ten".split()


@pytest.fixture
def corpus(prep, rnc, tmp_path) -> Path:
    """100 things that Joe says in the one game, and a few recordings of both that are dropped."""
    things = [f"{a} and {b}.*02" for a in NUMBERS for b in NUMBERS]
    things[:10] = ["Hello again my friend.*02"] * 7 + ["In 1844*02", "Ooop oop!", "A text that is much too long for it " * 4]
    second = mp3(1.5)
    files = {"QUEEN2.JAS": "\r\n".join([*things, "to", "No"]).encode()}
    files |= {f"JOE{number + 41:04d}1.SB": second for number in range(len(things))}
    files |= {"JOE00501.SB": mp3(1.1), "JOE01301.SB": b"no MP3", "JOE01311.SB": mp3(0.4), "89SSSSSS.SB": second}
    folder = tmp_path / "corpus"
    (folder / "a").mkdir(parents=True)
    (folder / "a/queen.1c").write_bytes(queen_file(files))
    texts = section(prep.sky, ["Please take this card.", "Please go."])
    write_sky(folder / "b", {60600: texts, 50000: speech(rnc, 1.6), 50001: b"\x81" + bytes(21) + b"RNC\1 damaged"})
    return folder


def run(prep, corpus: Path) -> dict[str, list]:
    out = corpus.parent / "data"
    prep.main(["--corpus", str(corpus), "--out", str(out)])
    for name in ("train", "dev", "test"):
        validate(out / name, require_feats=False)
    return {name: list(DataDir.read(out / name).utterances.values()) for name in ("train", "dev", "test")}


def test_sets_and_what_is_dropped(prep, corpus, capsys):
    sets = run(prep, corpus)
    printed = capsys.readouterr().err
    for reason in (
        "queen: 1 dropped: no text", "queen: 2 dropped: no plain English", "queen: 1 dropped: unreadable", "joe01301: not an MP3",
        "queen: 1 dropped: under 1 s or over 25 s", "queen: 1 dropped: text and recording are not of one length",
        "queen: 2 dropped: same text more than 5 times", "sky: 1 dropped: unreadable", "sky 50001: no packed data",
    ):  # fmt: skip
        assert reason in printed, reason
    everything = [utterance for utterances in sets.values() for utterance in utterances]
    assert len(everything) == 100 - 3 - 1 - 1 - 2 + 1
    texts = {name: {utterance.text for utterance in utterances} for name, utterances in sets.items()}
    assert not texts["train"] & texts["dev"] and not texts["train"] & texts["test"] and not texts["dev"] & texts["test"]
    assert len(texts["dev"]) == len(texts["test"]) == len(set.union(*texts.values())) // 40
    by_name = {utterance.utt: utterance for utterance in everything}
    assert by_name["queen-joe-joe00411"].spk == "queen-joe" and by_name["queen-joe-joe00411"].text == "hello again my friend"
    assert by_name["sky-50000"].spk == "sky" and by_name["sky-50000"].text == "please take this card"
    samples, rate = soundfile.read(by_name["sky-50000"].wav)
    assert rate == 16000 and len(samples) == 25600
    middle = np.interp(np.arange(25600) * 11025 / 16000, np.arange(17640), tone(1.6))
    assert np.abs(samples - middle)[200:-200].max() < 0.03


def test_a_second_run_does_nothing_and_a_stopped_one_goes_on(prep, corpus, capsys, monkeypatch):
    run(prep, corpus)
    out = corpus.parent / "data"
    before = contents(out)
    capsys.readouterr()
    kept = next((out / "audio").glob("queen-*/joe00601.flac"))
    kept.with_name("joe00611.flac").unlink()
    monkeypatch.setattr(prep.queen, "decode", lambda data, real=prep.queen.decode: made.append(data) or real(data))
    made = []
    run(prep, corpus)
    assert contents(out) == before and "up to date" in capsys.readouterr().err
    assert len(made) == 2  # the one that was missing, and the one that is no MP3


def test_a_corpus_without_the_games_says_what_is_wanted(prep, tmp_path):
    with pytest.raises(UserError, match=r"no such folder; run stage -1 \(./run.sh --stage download\)"):
        prep.main(["--corpus", str(tmp_path / "none"), "--out", str(tmp_path / "data")])
    with pytest.raises(UserError, match="no queen.1c or sky.dnr with speech in it"):
        prep.main(["--corpus", str(tmp_path), "--out", str(tmp_path / "data")])


def test_the_recipe_runs_from_a_folder_of_one_game(prep, corpus, tmp_path):
    shutil.rmtree(corpus / "b")
    copy = Copy(tmp_path / "a copy", "adventure")
    run(prep, corpus)
    shutil.copytree(tmp_path / "data/audio", copy.root / "egs/adventure/data/audio")  # spares the script what takes long
    done = copy.run("adventure", "--corpus", str(corpus), "--stop-stage", "0")
    assert done.returncode == 0, done.stderr
    assert len((copy.root / "egs/adventure/data/train/text").read_text().splitlines()) > 80


def test_download_without_apt_names_the_ways_on(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    command = [shutil.which("bash"), str(DOWNLOAD), str(tmp_path / "downloads")]
    done = subprocess.run(command, env={"PATH": str(programs)}, text=True, capture_output=True)
    assert done.returncode == 1 and "no apt-get" in done.stderr and "--corpus DIR" in done.stderr
    assert not (tmp_path / "downloads").exists()


def test_download_of_other_files_leaves_nothing(tmp_path):
    """apt-get writes a package, dpkg unpacks it: files of the right names, and not the games."""
    programs = tmp_path / "bin"
    games = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c usr/share/scummvm/beneath-a-steel-sky/sky.dnr"
    games += " usr/share/scummvm/beneath-a-steel-sky/sky.dsk"
    games += " usr/share/doc/flight-of-the-amazon-queen/copyright usr/share/doc/beneath-a-steel-sky/copyright"
    made = f'for file in {games}; do mkdir -p "$3/${{file%/*}}"; echo other > "$3/$file"; done'
    programs.mkdir()
    for name, script in (("apt-get", "touch games.deb"), ("dpkg", made)):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    command = ["bash", str(DOWNLOAD), str(tmp_path / "downloads")]
    done = subprocess.run(command, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}, text=True, capture_output=True)
    assert done.returncode == 1 and "queen.1c: SHA-256" in done.stderr and "another version of" in done.stderr, done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")
def test_the_real_games(prep, tmp_path):
    done = subprocess.run(["bash", str(DOWNLOAD), str(tmp_path)], text=True, capture_output=True)
    if "cannot get" in done.stderr:
        pytest.skip("the packages cannot be had here")
    assert done.returncode == 0, done.stderr
    clips = prep.queen.clips(tmp_path / "adventure/queen.1c")
    assert len(clips) == 6745 and sum(clip.text is not None for clip in clips) == 6587
    assert {clip.key: clip.text for clip in clips}["020009p1"] == "Ha ha ha!"
    assert abs(len(clips[0].samples()) / 11025 - 3.5) < 0.1
    spoken = prep.sky.clips(tmp_path / "adventure/sky.dnr")
    assert sum(clip.text is not None for clip in spoken) > 3480
    assert {clip.key: clip.text for clip in spoken}["50092"] == "It's a wrench."
