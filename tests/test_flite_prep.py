"""egs/flite: what becomes a sentence, spoken once, sets that share no text; flite and packages are stand-ins."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import soundfile
from recipes import ROOT, Copy, contents, load_script, write_audio

from steermoe.data.kaldi_dir import DataDir, validate
from steermoe.data.synthesis import sentences
from steermoe.errors import UserError

DOWNLOAD = ROOT / "egs/flite/local/download.sh"
# Says its voices; else copies a second of noise and writes down what it was asked to say.
FLITE = """#!/bin/sh
if [ "$1" = -lv ]; then echo "Voices available: kal16 rms slt "; exit; fi
here=$(dirname "$0")
echo "$2 $4" >> "$here/said"
cp "$here/second.wav" "$6"
"""
ONES = "one two three four five six seven eight nine ten".split()


@pytest.fixture(scope="module")
def prep():
    return load_script("flite/local/data_prep.py")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Forty sentences, and a flite that every one takes a second."""
    folder = tmp_path / "corpus"
    write_program(folder / "bin/flite", FLITE)
    write_audio(folder / "bin/second.wav", 1.0)
    (folder / "text").mkdir()
    (folder / "text" / "numbers").write_text("".join(f"The numbers {a} and {b}.\n%\n" for a in ONES[:4] for b in ONES))
    return folder


def run(prep, corpus: Path, *options: str) -> dict[str, list]:
    out = corpus.parent / "data"
    prep.main(["--corpus", str(corpus), "--out", str(out), *options])
    for name in ("train", "dev", "test"):
        validate(out / name, require_feats=False)
    return {name: list(DataDir.read(out / name).utterances.values()) for name in ("train", "dev", "test")}


def said(corpus: Path) -> list[str]:
    """What flite has said since the last question."""
    file = corpus / "bin/said"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_what_is_a_sentence(prep, tmp_path):
    (tmp_path / "b").write_text(
        "First in b, second-hand words!  Too short. It costs 5 dollars or so. She said: \"don't you do that\"\n%\nnext one\n"
        "is here"
    )
    (tmp_path / "a").write_text(
        "Über den Wolken ist es schön. It's in a (this is also a sentence) -- and one more of these\n\t-- A. Nobody"
    )
    (tmp_path / "c").write_text("First in b second hand words\n%\n" + "word " * 30 + ".\n" + "word " * 31)
    assert sentences([tmp_path], prep.WORDS) == [
        "this is also a sentence",
        "and one more of these",
        "first in b second hand words",
        "don't you do that",
        "next one is here",
        " ".join(["word"] * 30),
    ]
    assert sentences([tmp_path / "c", tmp_path / "a"], prep.WORDS)[0] == "first in b second hand words"


def test_the_first_sentences_are_spoken_until_the_hours_are_reached(prep, corpus):
    sets = run(prep, corpus, "--hours", "0.002", "--voices", "slt rms")  # 7.2 s
    assert {name: len(found) for name, found in sets.items()} == {"train": 8, "dev": 10, "test": 10}
    assert sorted(u.utt for u in sets["train"]) == [f"{v}-{n:06d}" for v in ("rms", "slt") for n in range(v == "rms", 8, 2)]
    assert all(u.spk == u.utt.split("-")[0] and u.duration == 1.0 for found in sets.values() for u in found)
    texts = [u.text for found in sets.values() for u in found]
    assert len(set(texts)) == len(texts) and all(text.startswith("the numbers ") for text in texts)
    assert {f"{u.spk} {u.text}" for found in sets.values() for u in found} <= set(said(corpus))


def test_nothing_is_spoken_twice_and_more_hours_keep_what_there_is(prep, corpus, capsys):
    few = run(prep, corpus, "--hours", "0.002", "--voices", "slt rms")
    said(corpus)
    before = contents(corpus.parent / "data")
    run(prep, corpus, "--hours", "0.002", "--voices", "slt rms")
    assert said(corpus) == [] and contents(corpus.parent / "data") == before and "up to date" in capsys.readouterr().err

    wavs = sorted((corpus.parent / "data/wav").iterdir())
    wavs[0].unlink()  # as if killed before it
    more = run(prep, corpus, "--hours", "0.004", "--voices", "slt rms")
    assert len(said(corpus)) == 1 and len(more["train"]) == 15 and all(u in more["train"] for u in few["train"])
    assert (more["dev"], more["test"]) == (few["dev"], few["test"])

    other = run(prep, corpus, "--hours", "0.002", "--voices", "slt rms", "--sentence-seed", "2")
    heard = said(corpus)  # the same utterance ids, other texts: other recordings
    assert {u.text for u in other["train"]} != {u.text for u in few["train"]} and len(heard) > 20


def test_a_text_that_is_at_an_end(prep, corpus, capsys):
    text = corpus.parent / "mine"
    text.write_text("\n%\n".join(f"here is my sentence {word}" for word in ONES))
    sets = run(prep, corpus, "--hours", "3", "--voices", "slt", "--text", str(text))
    assert {name: len(found) for name, found in sets.items()} == {"train": 6, "dev": 2, "test": 2}
    assert "all the text makes 0.00 h; more need more --text" in capsys.readouterr().err


def test_flite_of_the_machine(prep, corpus, monkeypatch):
    (corpus / "bin").rename(corpus.parent / "elsewhere")
    monkeypatch.setenv("PATH", f"{corpus.parent / 'elsewhere'}:/usr/bin:/bin")
    assert len(run(prep, corpus, "--hours", "0.001", "--voices", "slt rms")["train"]) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        (["--voices", "slt bob"], "flite has no voice 'bob'; it has kal16, rms, slt"),
        (["--voices", ""], "flite has no voice ''"),
        (["--hours", "0"], "--hours 0: a number over 0"),
        (["--text", "nowhere/to/be.found"], "nowhere/to/be.found: no such file or folder; run stage -1"),
        (["--text", "{corpus}/bin"], "1 sentences of 4 to 30 words of the letters a to z, 4 are the least; give more with"),
    ],
)
def test_bad_options(prep, corpus, options, message):
    for file in (corpus / "bin").iterdir():
        if file.name != "flite":
            file.unlink()
    (corpus / "bin/note").write_text("this is the only one")
    assert len(sentences([corpus / "bin"], prep.WORDS)) == 1
    with pytest.raises(UserError) as error:
        run(prep, corpus, *(option.format(corpus=corpus) for option in options))
    assert message in str(error.value)


def test_no_flite(prep, corpus, monkeypatch):
    shutil.rmtree(corpus / "bin")
    monkeypatch.setenv("PATH", str(corpus))
    with pytest.raises(UserError, match=r"flite: .*No such file.*; stage -1 \(./run.sh --stage -1\) fetches flite"):
        run(prep, corpus)


def test_a_flite_that_fails(prep, corpus):
    voices = '#!/bin/sh\n[ "$1" = -lv ] && echo "Voices available: slt"'
    write_program(corpus / "bin/flite", f"{voices} || {{ echo out of order >&2; exit 3; }}\n")
    with pytest.raises(UserError, match="flite -voice slt -t 'the numbers .*: out of order"):
        run(prep, corpus, "--voices", "slt")
    write_program(corpus / "bin/flite", f'{voices} || echo no sound > "$6"\n')
    with pytest.raises(UserError, match=r"slt-\d+\."):
        run(prep, corpus, "--voices", "slt")
    assert not list((corpus.parent / "data/wav").glob("[!.]*"))


def test_the_driver_hands_the_options_on(corpus, tmp_path):
    copy = Copy(tmp_path / "a copy", "flite")
    words = ["--corpus", str(corpus), "--hours", "0.001", "--voices", "rms", "--sentence-seed", "3", "--stop-stage", "0"]
    done = copy.run("flite", *words)
    assert done.returncode == 0, done.stderr
    made = (copy.root / "egs/flite/data/train/utt2spk").read_text().splitlines()
    assert made == [f"rms-{number:06d} rms" for number in range(4)]


def test_download_without_the_packages_says_what_to_do(tmp_path):
    for name in ("apt-get", "dpkg"):
        write_program(tmp_path / "bin" / name, "#!/bin/sh\necho 'E: Unable to locate package'\nexit 100\n")
    done = download(tmp_path)
    assert done.returncode == 1 and "E: Unable to locate package" in done.stderr and "--corpus DIR" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


def download(folder: Path, script: Path = DOWNLOAD) -> subprocess.CompletedProcess:
    command = ["bash", str(script), str(folder / "downloads"), *(["--hours", "6.5"] if script == DOWNLOAD else [])]
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}
    return subprocess.run(command, env=environment, text=True, capture_output=True)


def ints(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def strings(*values: str) -> bytes:
    return ints(16, len(values)) + b"".join(ints(9, len(value.encode())) + value.encode() for value in values)


def named(values: dict[str, bytes], symbol: bytes) -> bytes:
    """A list with names; `symbol` is what says that the attribute is called so."""
    return ints(0x213, len(values)) + b"".join(values.values()) + ints(0x402) + symbol + strings(*values) + ints(254)


def write_r_data(database: Path, variables: dict[str, list[str]]) -> None:
    """As R 4 does: serialized (version 3, UTF-8) and compressed vectors one after the other, and an index of where they lie."""
    head = b"X\n" + ints(3, 0x40201, 0x30500, 5) + b"UTF-8"
    raw, places = b"", {}
    for name, lines in variables.items():
        content = head + strings(*lines)
        chunk = ints(len(content)) + zlib.compress(content)
        places[name] = ints(13, 2, len(raw), len(chunk))
        raw += chunk
    inner = named(places, ints(1, 9, 5) + b"names")  # the name is spelt once; later it is a reference to the first
    index = named({"variables": inner, "compressed": ints(10, 1, 1)}, ints(0x1FF))
    database.parent.mkdir(parents=True, exist_ok=True)
    database.with_suffix(".rdb").write_bytes(raw)
    database.with_suffix(".rdx").write_bytes(gzip.compress(head + index))


NOVELS = "emma mansfieldpark northangerabbey persuasion prideprejudice sensesensibility".split()
R_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata"


WORDNET = {
    "noun": ("001 n cat", 'an animal; "the cat sat on the mat"; "a cat"; "it cost 5 dollars or so"'),
    "verb": ("002 v sit", 'be seated; "The cat sat on the mat!"; "on the mat sat the cat"; "they sat down, too"'),
    "adj": ("003 a flat", "without examples"),
    "adv": ("004 r so", '"so it goes on"'),
}


def write_packages(folder: Path, verses: int) -> None:
    """An apt-get that gives one package, and a dpkg that unpacks what all of them hold."""
    files = folder / "packages"
    write_program(files / "usr/bin/flite", FLITE)
    write_program(files / "usr/bin/bible", f"#!/bin/sh\n[ -f bible.data ] && seq {verses} | sed 's/.*/Ge1:& This is verse &./'\n")
    for name in ("lib/bible.data", "lib/x86_64-linux-gnu/libflite.so.1", "share/doc/libflite1/copyright"):
        (files / "usr" / name).parent.mkdir(parents=True, exist_ok=True)
        (files / "usr" / name).write_text("x")
    write_r_data(files / R_DATA, {name: [name.upper(), "", "It cost £20,000."] for name in NOVELS})
    for part, (head, gloss) in WORDNET.items():
        (files / "usr/share/wordnet").mkdir(parents=True, exist_ok=True)
        (files / f"usr/share/wordnet/data.{part}").write_text(f"  1 The licence \"is not an example of a word\"\n{head} | {gloss}  \n")
    for name in ("fortunes", "bible-kjv-text", "r-cran-janeaustenr", "wordnet-base"):
        (files / "usr/share/doc" / name).mkdir()
        (files / "usr/share/doc" / name / "copyright").write_text(name)
    (files / "usr/share/games/fortunes").mkdir(parents=True)
    for name in ("wisdom", "wisdom.dat", "wisdom.u8", "perl", "ascii-art", "art"):
        (files / "usr/share/games/fortunes" / name).write_text(name)
    write_program(folder / "bin/apt-get", "#!/bin/sh\ntouch all.deb\n")
    write_program(folder / "bin/dpkg", f'#!/bin/sh\ncp -r "{files}" "$3"\n')


def test_download_leaves_flite_and_the_texts_and_does_nothing_the_second_time(tmp_path):
    write_packages(tmp_path, 31102)
    done = download(tmp_path)
    packages = "fortunes fortunes-min bible-kjv bible-kjv-text r-cran-janeaustenr wordnet-base flite libflite1"
    assert done.returncode == 0 and packages in done.stderr, done.stderr
    assert "other texts than those of the published results" in done.stderr
    assert "other novels than those of the published results" in done.stderr
    assert "other examples than those of the published results" in done.stderr
    left = tmp_path / "downloads/flite"
    assert sorted(path.name for path in (left / "text").iterdir()) == ["bible", "wisdom"]
    assert (left / "text/bible").read_text().startswith("This is verse 6.\nThis is verse 12.\n")
    assert (left / "bin/flite").is_file() and (left / "lib/libflite.so.1").is_file()
    assert (left / "LICENCE.bible").read_text() == "bible-kjv-text"
    novels = {path.stem: path.read_text(encoding="utf-8") for path in (left / "austen").iterdir()}
    assert novels == {name: f"{name.upper()}\n\nIt cost £20,000.\n" for name in NOVELS if name != "northangerabbey"}
    assert (left / "LICENCE.austen").read_text() == "r-cran-janeaustenr"
    assert (left / "LICENCE.wordnet").read_text() == "wordnet-base"
    shown = (left / "wordnet/examples.txt").read_text().splitlines()
    assert {"they sat down, too", "so it goes on"} <= {*shown[::2]} and {*shown[1::2]} == {"%"}
    assert len(shown[::2]) == 4  # of the three about the cat, the last says nothing new
    (tmp_path / "bin/apt-get").unlink()
    again = download(tmp_path).stderr
    assert "up to date" in again and "without austen/" not in again
    shutil.rmtree(left / "wordnet")
    again = download(tmp_path).stderr
    assert "up to date" in again and "downloads/flite is an older one, without austen/ or wordnet/; remove it" in again


def test_wordnet_without_a_part(tmp_path):
    write_packages(tmp_path, 31102)
    (tmp_path / "packages/usr/share/wordnet/data.adv").unlink()
    done = download(tmp_path)
    assert done.returncode == 1 and "data.adv: no such file" in done.stderr
    assert "WordNet's examples cannot be read, see above;\n  ways on:" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_other_recipe_that_speaks_gets_flite_alone(tmp_path):
    write_packages(tmp_path, 6)
    done = download(tmp_path, ROOT / "egs/spoken_tools/local/download.sh")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "downloads/flite").iterdir()) == ["LICENCE", "bin", "lib"]


def test_novels_of_another_form(tmp_path):
    write_packages(tmp_path, 31102)
    write_r_data(tmp_path / "packages" / R_DATA, {"emma": ["EMMA"]})
    done = download(tmp_path)
    assert done.returncode == 1 and "Rdata.rdx: has no 'mansfieldpark' in it: another version of the package" in done.stderr
    assert "Jane Austen's novels cannot be read, see above;\n  ways on:" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    "change", [lambda x: b"", lambda x: x[:-9], lambda x: x[:4] + b"Z" + x[4:], lambda x: gzip.compress(b"A")]
)
@pytest.mark.parametrize("ending", [".rdb", ".rdx"])
def test_damaged_r_data(tmp_path, change, ending):
    write_r_data(tmp_path / "Rdata", {"emma": ["EMMA"]})
    read_variables = load_script("flite/local/r_data.py").read_variables
    assert read_variables(tmp_path / "Rdata", ["emma"]) == {"emma": ["EMMA"]}
    file = tmp_path / f"Rdata{ending}"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=r"Rdata.rd\[xb\]: not R's lazy-load form, or another version of it"):
        read_variables(tmp_path / "Rdata", ["emma"])


def test_a_bible_that_is_not_whole(tmp_path):
    write_packages(tmp_path, 31000)
    done = download(tmp_path)
    assert done.returncode == 1 and "the program bible does not write the Bible's 31102 verses" in done.stderr
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.skipif(not Path("/etc/os-release").exists(), reason="the name of a library's package depends on the distribution")
@pytest.mark.parametrize("there, wanted", [("libreadline.so.8 (libc6)", ""), ("libreadline.so.80 (libc6)", "libreadline8")])
def test_a_library_that_the_machine_lacks_comes_along(tmp_path, there, wanted):
    write_program(tmp_path / "ldconfig", f"#!/bin/sh\necho '\t{there}'\n")
    script = f'. "{ROOT}/utils/debian.sh"; packages=(); add_library libreadline.so.8 libreadline8; echo "${{packages[*]}}"'
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", script], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip().removesuffix("t64") == wanted


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")
def test_real_download(prep, tmp_path):
    subprocess.run(["bash", str(DOWNLOAD), str(tmp_path)], check=True)
    sets = run(prep, tmp_path / "flite", "--hours", "0.002")
    assert len(sentences([tmp_path / "flite/text"], prep.WORDS)) == 34424
    assert len(sentences([tmp_path / "flite/austen"], prep.WORDS)) == 38706
    assert soundfile.info(sets["train"][0].wav).samplerate == 16000
