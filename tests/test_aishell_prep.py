"""egs/aishell and egs/aishell2: their own layouts to Kaldi directories, Chinese text, and settings that score by character."""

from __future__ import annotations

import pytest
from recipes import ROOT, Copy, contents, load_script, write_audio

from steermoe.config import load_config
from steermoe.errors import UserError


@pytest.fixture(scope="module")
def prep():
    return load_script("aishell/local/data_prep.py")


@pytest.fixture(scope="module")
def prep2():
    return load_script("aishell2/local/data_prep.py")


def make_aishell(root) -> None:
    lines = []
    for speaker, name in (("S0002", "train"), ("S0724", "dev"), ("S0764", "test")):
        for number in (122, 123):
            utt = f"BAC009{speaker}W0{number}"
            write_audio(root / "wav" / name / speaker / f"{utt}.wav")
            lines.append(f"{utt} 而 对 楼市 A I 成交 {number}\n")
    write_audio(root / "wav/train/S0002/BAC009S0002W0999.wav")
    (root / "transcript").mkdir()
    (root / "transcript/aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")


def make_folder(folder, prefix: str, count: int = 2) -> None:
    """trans.txt and wav.scp as AISHELL-2 has them."""
    utts = [f"{prefix}W{number:04d}" for number in range(count)]
    for utt in utts:
        write_audio(folder / "wav" / prefix[1:] / f"{utt}.wav")
    (folder / "trans.txt").write_text("".join(f"{utt}\t第{n}句话\n" for n, utt in enumerate(utts)), encoding="utf-8")
    (folder / "wav.scp").write_text("".join(f"{utt}\twav/{prefix[1:]}/{utt}.wav\n" for utt in utts))


def check_sets(data, counts: dict[str, int]) -> dict[str, list]:
    from steermoe.data.kaldi_dir import DataDir, validate

    assert (data / "sets").read_text().split() == ["train", "dev", "test"]
    for name, count in counts.items():
        validate(data / name, require_feats=False)
        assert len(DataDir.read(data / name).utterances) == count
    return {name: list(DataDir.read(data / name).utterances.values()) for name in counts}


@pytest.mark.parametrize("deeper", ["", "data_aishell"])
def test_aishell(prep, tmp_path, capsys, deeper):
    make_aishell(tmp_path / "c" / deeper)
    words = ["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "data")]
    prep.main(words)
    sets = check_sets(tmp_path / "data", {"train": 2, "dev": 2, "test": 2})
    first = sets["train"][0]
    assert (first.utt, first.spk, first.text) == ("BAC009S0002W0122", "BAC009S0002", "而对楼市A I成交122")
    printed = capsys.readouterr().err
    assert "train: 1 audio files without a transcript left out" in printed and "120098 are published" in printed
    before = contents(tmp_path / "data")
    prep.main(words)
    assert "up to date" in capsys.readouterr().err and contents(tmp_path / "data") == before


def test_wrong_aishell_trees_are_named(prep, tmp_path):
    def run():
        prep.main(["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "data")])

    with pytest.raises(UserError, match="no such folder; run stage -1"):
        run()
    (tmp_path / "c/LibriSpeech").mkdir(parents=True)
    with pytest.raises(UserError, match="not AISHELL-1: .* but LibriSpeech; give --corpus DIR"):
        run()
    make_aishell(tmp_path / "c")
    (tmp_path / "c/wav/S0003.tar.gz").touch()
    with pytest.raises(UserError, match="1 speakers are still packed, such as S0003.tar.gz; unpack them first"):
        run()
    (tmp_path / "c/wav/S0003.tar.gz").unlink()
    (tmp_path / "c/wav/dev").rename(tmp_path / "c/wav/Dev")
    with pytest.raises(UserError, match="wav/dev missing"):
        run()
    (tmp_path / "c/wav/Dev").rename(tmp_path / "c/wav/dev")
    transcripts = tmp_path / "c/transcript/aishell_transcript_v0.8.txt"
    transcripts.write_text("BAC009S0002W0122 而\nBAC009S0002W0123\n", encoding="utf-8")
    with pytest.raises(UserError, match="v0.8.txt:2: 'BAC009S0002W0123' is not"):
        run()
    transcripts.write_text("BAC009S0002W0122 而\n", encoding="utf-8")
    with pytest.raises(UserError, match="dev has no utterance"):
        run()
    assert not (tmp_path / "data").exists()


def test_aishell2_channels(prep2, tmp_path, capsys):
    root = tmp_path / "AISHELL-2"
    make_folder(root / "iOS/data", "IC0001", 4)
    for channel in ("iOS", "Android", "Mic"):
        for name in ("dev", "test"):
            make_folder(root / "AISHELL-DEV-TEST-SET" / channel / name, f"{channel[0]}{name[0].upper()}0001", 3)
    words = ["--corpus", str(root), "--out", str(tmp_path / "data")]
    prep2.main(words)
    sets = check_sets(tmp_path / "data", {"train": 4, "dev": 3, "test": 3})
    assert (sets["train"][0].utt, sets["train"][0].spk, sets["train"][0].text) == ("IC0001W0000", "IC0001", "第0句话")
    assert sets["dev"][0].spk == "iD0001" and "train: 4 utterances, 1009223 are published" in capsys.readouterr().err
    prep2.main([*words, "--channel", "Mic"])
    assert check_sets(tmp_path / "data", {"train": 4, "dev": 3, "test": 3})["test"][0].spk == "MT0001"
    with pytest.raises(UserError, match="several folders are dev among .*--channel"):
        prep2.main([*words, "--channel", "Telephone"])


def test_wrong_aishell2_trees_are_named(prep2, tmp_path):
    root = tmp_path / "c"

    def run():
        prep2.main(["--corpus", str(root), "--out", str(tmp_path / "data")])

    with pytest.raises(UserError, match="no such folder; give --corpus DIR"):
        run()
    (root / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match="not AISHELL-2: it has no trans.txt, but train-clean-100"):
        run()
    make_folder(root / "iOS/data", "IC0001")
    make_folder(root / "iOS/dev", "ID0001")
    with pytest.raises(UserError, match=r"no folder for test \(test\) among iOS/data, iOS/dev"):
        run()
    make_folder(root / "iOS/test", "IT0001")
    for text, message in (
        ("IC0001W0000 no tab\n", "trans.txt:1: .* is not `UTTERANCE<tab>"),
        ("IC0001W0000\ta\nIC0001W0000\tb\n", "trans.txt:2: IC0001W0000 occurs a second time"),
    ):
        (root / "iOS/data/trans.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            run()
    assert not (tmp_path / "data").exists()


def test_a_sample_of_one_folder_is_split(prep2, tmp_path, capsys):
    make_folder(tmp_path / "c", "IC0001", 24)
    (tmp_path / "c/wav/C0001/IC0001W0003.wav").unlink()
    prep2.main(["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "data")])
    sets = check_sets(tmp_path / "data", {"train": 19, "dev": 2, "test": 2})
    texts = [utt.text for utts in sets.values() for utt in utts]
    assert len(texts) == len(set(texts)) == 23
    printed = capsys.readouterr().err
    assert "a sample: split by utterance" in printed and "1 sentences without audio left out, the first: IC0001W0003" in printed


def test_the_shared_sample(prep2, shared_data, tmp_path):
    corpus = shared_data / "aishell_sample"
    if not corpus.is_dir():
        pytest.skip("no aishell_sample in ../shared/data")
    prep2.main(["--corpus", str(corpus), "--out", str(tmp_path)])
    sets = check_sets(tmp_path, {"train": 61, "dev": 10, "test": 9})
    assert all(utt.spk == "BAC009S0150" and " " not in utt.text for utts in sets.values() for utt in utts)


def test_without_corpus_one_message_names_the_ways_on(tmp_path):
    copy = Copy(tmp_path / "r", "aishell", "aishell2")
    done = copy.run("aishell", "--stage", "0", "--mirror", "http://127.0.0.1:9/resources")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "33/data_aishell.tgz cannot be reached (Connection refused); give --corpus DIR" in line
    assert "cd ../asterisk && ./run.sh" in line
    done = copy.run("aishell2")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "AISHELL-2 cannot be reached by a script" in line
    assert "--corpus DIR" in line and "cd ../asterisk && ./run.sh" in line


@pytest.mark.parametrize("name", ["aishell", "aishell2"])
def test_settings_score_characters(name):
    config = load_config(ROOT / "egs" / name / "conf/train_whisper.yaml")
    assert (config.decode_conf.unit, config.decode_conf.normalizer) == ("char", "chinese")
    assert config.data_conf.prompt == "请逐字复述音频内容为文字: "
    assert config.encoder_conf["model"] == "whisper-base"


def test_all_settings_of_all_recipes_are_valid():
    for path in (ROOT / "egs").glob("*/conf/train_*.yaml"):
        load_config(path)
