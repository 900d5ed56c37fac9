"""Whisper's own decoder: token ids, text, searching, and the verb that may be killed at any time."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from steermoe.bin import whisper as verb
from steermoe.encoders import whisper_decoder
from steermoe.encoders.whisper_checkpoint import load_checkpoint
from steermoe.encoders.whisper_decoder import WhisperDecoder, split_windows
from steermoe.encoders.whisper_tokens import WhisperTokens, read_table
from steermoe.errors import UserError

ENGLISH, MULTILINGUAL, LARGE_V3 = 51864, 51865, 51866


def make_table(count: int = 50256) -> list[bytes]:
    """A byte-pair vocabulary of the right size: bytes first, as in GPT-2; then merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = [bytes([byte]) for byte in [*printable, *sorted(set(range(256)) - set(printable))]]
    table += [b" -", b" '", "♪".encode()[:2], b" \xe2", b"ab", b"bc"]
    return table + [b"w%d" % number for number in range(count - len(table))]


def write_tiktoken(path: Path, table: list[bytes]) -> None:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {number}\n" for number, token in enumerate(table)))


def spell(table: list[bytes]) -> list[str]:
    """GPT-2's printable spelling, as transformers computes it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    return ["".join(characters[byte] for byte in token) for token in table]


@pytest.fixture(scope="module")
def table() -> list[bytes]:
    return make_table()


# ---- token ids and text


def test_special_ids_are_the_published_ones(table):
    english = WhisperTokens(ENGLISH, table)
    assert english.prompt() == [50257, 50362] and english.end == 50256
    assert english.prompt(timestamps=True) == [50257]
    base = WhisperTokens(MULTILINGUAL, [*table, b""])
    assert base.prompt("en") == [50258, 50259, 50359, 50363] and base.end == 50257
    assert base.prompt("zh") == [50258, 50260, 50359, 50363]
    assert base.prompt("su")[1] == 50357  # the last of 99 languages
    large = WhisperTokens(LARGE_V3, [*table, b""])
    assert large.prompt("yue") == [50258, 50358, 50360, 50364]


def test_languages_that_a_model_does_not_know(table):
    with pytest.raises(UserError, match="English only"):
        WhisperTokens(ENGLISH, table).prompt("de")
    multilingual = WhisperTokens(MULTILINGUAL, [*table, b""])
    with pytest.raises(UserError, match="'yue' is not one of"):
        multilingual.prompt("yue")
    with pytest.raises(UserError, match="did you mean 'en'"):
        multilingual.prompt("eng")


def test_text_leaves_out_special_tokens_and_joins_bytes_before_decoding(table):
    tokens = WhisperTokens(ENGLISH, table)
    halves = [table.index(bytes([byte])) for byte in "é".encode()]
    ids = [50257, table.index(b" -"), *halves, 50362, 50400, 50256]
    assert tokens.decode(ids) == " -é"
    assert tokens.decode(halves[:1]) == "�"


def test_the_pair_with_the_lowest_rank_is_merged_first(table):
    tokens = WhisperTokens(ENGLISH, table)
    assert [table[i] for i in tokens.encode_word("abc")] == [b"ab", b"c"]
    reordered = list(table)
    a, b = table.index(b"ab"), table.index(b"bc")
    reordered[a], reordered[b] = reordered[b], reordered[a]
    assert [reordered[i] for i in WhisperTokens(ENGLISH, reordered).encode_word("abc")] == [b"a", b"bc"]


def test_every_vocabulary_file_gives_the_same_table(table, tmp_path):
    spelled = spell(table)
    by_token = {token: number for number, token in enumerate(spelled)}
    writers = {
        "gpt2.tiktoken": lambda path: write_tiktoken(path, table),
        "vocab.json": lambda path: path.write_text(json.dumps(by_token | {"<|endoftext|>": 50256})),
        "tokenizer.json": lambda path: path.write_text(json.dumps({"model": {"vocab": by_token}, "added_tokens": []})),
        "vocabulary.json": lambda path: path.write_text(json.dumps([*spelled, "<|endoftext|>"])),
        "vocabulary.txt": lambda path: path.write_text("\n".join([*spelled, "<|endoftext|>"]) + "\n", encoding="utf-8"),
    }
    for name, write in writers.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        write(folder / name)
        assert read_table(folder, ENGLISH) == (table, folder / name)
    assert read_table(tmp_path, ENGLISH) is None


def test_of_two_tables_the_right_one_is_taken(table, tmp_path):
    write_tiktoken(tmp_path / "a.tiktoken", [*table, b"more"])
    write_tiktoken(tmp_path / "b.tiktoken", table)
    assert read_table(tmp_path, ENGLISH)[1].name == "b.tiktoken"
    assert read_table(tmp_path, MULTILINGUAL)[1].name == "a.tiktoken"


def test_damaged_vocabularies_are_named(table, tmp_path):
    path = tmp_path / "x.tiktoken"
    path.write_text("IQ== 0\nIg==\n")
    with pytest.raises(UserError, match=r"x\.tiktoken:2: not `base64 id`"):
        read_table(tmp_path, ENGLISH)
    path.write_text("IQ== 0\nIg== 7\n")
    with pytest.raises(UserError, match=r"x\.tiktoken:2: id 7, 1 was expected"):
        read_table(tmp_path, ENGLISH)
    write_tiktoken(path, table[:1000])
    with pytest.raises(UserError, match="1000 text tokens"):
        read_table(tmp_path, ENGLISH)
    path.unlink()
    (tmp_path / "vocabulary.txt").write_text("a b\n")
    with pytest.raises(UserError, match="spelling"):
        read_table(tmp_path, ENGLISH)
    with pytest.raises(UserError, match="1234 outputs"):
        read_table(tmp_path, 1234)


@pytest.mark.slow
def test_what_is_suppressed_is_what_published_conversions_list():
    from steermoe.fetch import cache_dir

    folder = cache_dir() / "models" / "whisper-base"
    if not folder.is_dir():
        pytest.skip("whisper-base is not in the cache; python -m steermoe.bin.fetch whisper-base")
    tokens = WhisperTokens(MULTILINGUAL, read_table(folder, MULTILINGUAL)[0])
    config = json.loads((folder / "config.json").read_text())
    assert tokens.suppressed == config["suppress_ids"] and tokens.suppressed_at_begin == config["suppress_ids_begin"]
    listed = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    names = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in tokens.languages), "<|translate|>"]
    assert listed[tokens.end : tokens.end + len(names)] == names and listed[tokens.no_timestamps] == "<|notimestamps|>"


# ---- searching


def test_long_audio_is_cut_into_equal_windows_without_loss():
    window = 30 * 16000
    for length, count in ((0, 1), (1, 1), (window, 1), (window + 1, 2), (5 * window // 2, 3)):
        samples = np.arange(length, dtype=np.float32)
        windows = split_windows(samples)
        assert len(windows) == count and all(len(w) <= window for w in windows)
        assert np.array_equal(np.concatenate(windows), samples)
        assert max(map(len, windows)) - min(map(len, windows)) <= 1


@pytest.fixture(scope="module")
def model_folder(table, tmp_path_factory) -> Path:
    """A random English-only Whisper whose answers vary with the audio and end by themselves now and then."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=ENGLISH, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=24,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * (1.0 if "conv" in name else 0.3))
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    write_tiktoken(folder / "vocab.tiktoken", table)
    return folder


def test_large_v3_s_mel_bands_and_vocabulary(table, tmp_path):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(6)
    config = WhisperConfig(
        vocab_size=LARGE_V3, num_mel_bins=128, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=24,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    write_tiktoken(tmp_path / "multilingual.tiktoken", [*table, b""])
    decoder = WhisperDecoder(tmp_path, language="yue", beam=2)
    assert decoder.prompt[1] == 50358 and len(decoder.transcribe([make_audio(1, 31.0), make_audio(2, 1.0)])) == 2


def make_audio(seed: int, seconds: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16000)) / 16000
    tones = sum(np.sin(2 * np.pi * rng.uniform(100, 4000) * time + rng.uniform(0, 6)) for _ in range(4))
    return (0.1 * tones * rng.uniform(0.2, 1)).astype(np.float32)


def greedy(folder: Path, samples: np.ndarray, steps: int) -> list[int]:
    """Greedy decoding written down plainly: the whole prefix again at every step."""
    from transformers import WhisperFeatureExtractor

    tokens = WhisperTokens(ENGLISH, read_table(folder, ENGLISH)[0])
    model = whisper_decoder.build_model(load_checkpoint(folder))
    mel = WhisperFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features
    ids = tokens.prompt()
    for step in range(steps):
        with torch.no_grad():
            logits = model(mel, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[tokens.suppressed] = -torch.inf
        if step == 0:
            logits[tokens.suppressed_at_begin] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == tokens.end:
            break
    return [i for i in ids[2:] if i != tokens.end]


def test_greedy_answers_are_those_of_a_plain_loop_alone_and_in_a_batch(model_folder):
    decoder = WhisperDecoder(model_folder)
    audio = [make_audio(seed, seconds) for seed, seconds in enumerate([1.0, 4.5, 12.0, 0.3])]
    together = decoder.transcribe(audio)
    for samples, transcript in zip(audio, together):
        wanted = greedy(model_folder, samples, decoder.longest)
        assert transcript.text == " ".join(decoder.tokens.decode(wanted).split())
        assert transcript.complete == (len(wanted) < decoder.longest)
        assert decoder.transcribe([samples]) == [transcript]
    assert len({transcript.text for transcript in together}) > 1


def test_suppression_of_the_model_folder_comes_first(model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": [7], "begin_suppress_tokens": None}))
    generation = WhisperDecoder(tmp_path).generation
    assert generation.suppress_tokens == [7] and generation.begin_suppress_tokens == [_space(tmp_path), 50256]


def _space(folder: Path) -> int:
    return read_table(folder, ENGLISH)[0].index(b" ")


def test_with_timestamps_the_answer_begins_with_one_and_none_is_written(model_folder):
    decoder = WhisperDecoder(model_folder, timestamps=True)
    [(ids, _)] = decoder._decode([make_audio(1, 2.0)])
    assert decoder.tokens.no_timestamps < ids[0] <= decoder.tokens.no_timestamps + 51
    assert "<|" not in decoder.transcribe([make_audio(1, 2.0)])[0].text


# ---- the verb


@pytest.fixture()
def data(tmp_path) -> Path:
    lines = []
    for index in range(7):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, make_audio(index, 0.5 + 0.5 * index), 16000)
        entry = {"utt": f"s{index % 2}-{index}", "spk": f"s{index % 2}", "text": f"one {index}", "duration": 0.5 + 0.5 * index}
        lines.append(json.dumps(entry | {"wav": str(path), "start": None, "end": None}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def call(model_folder, data, out, *more) -> None:
    verb.main(["--model", str(model_folder), "--data", str(data), "--out", str(out), "--batch-size", "2", *more])


FILES = ("text", "hyp.trn", "ref.trn")


def test_verb_writes_references_and_hypotheses_in_order_and_is_up_to_date_after(model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    call(model_folder, data, out)
    keys = [line.rpartition(" ")[2] for line in (out / "ref.trn").read_text().splitlines()]
    assert keys == [f"(s{i % 2}-s{i % 2}-{i})" for i in range(7)]
    assert (out / "ref.trn").read_text().startswith("one 0 (s0-s0-0)\n")
    hypotheses = [line.rpartition(" (")[0] for line in (out / "hyp.trn").read_text().splitlines()]
    decoder = WhisperDecoder(model_folder, timestamps=True)
    assert hypotheses == [decoder.transcribe([make_audio_from(tmp_path, i)])[0].text for i in range(7)]
    figures = json.loads((out / "decode.json").read_text())
    assert figures["utterances"] == 7 and figures["audio_seconds"] == 14.0 and figures["ended"]["repeat"] == 0
    before = {name: (out / name).stat().st_mtime_ns for name in FILES}
    call(model_folder, data, out)
    assert "up to date" in capsys.readouterr().out
    assert before == {name: (out / name).stat().st_mtime_ns for name in FILES}
    assert sorted(path.name for path in out.iterdir()) == [".done", "decode.json", "hyp.trn", "ref.trn", "text"]


def make_audio_from(folder: Path, index: int) -> np.ndarray:
    return soundfile.read(folder / f"{index}.wav", dtype="float32")[0]


def test_a_killed_run_goes_on_behind_its_last_whole_batch(model_folder, data, tmp_path, monkeypatch):
    call(model_folder, data, tmp_path / "whole")
    decoded = []
    transcribe = WhisperDecoder.transcribe

    def killed_in_the_third(self, utterances):
        decoded.append(len(utterances))
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return transcribe(self, utterances)

    monkeypatch.setattr(WhisperDecoder, "transcribe", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        call(model_folder, data, tmp_path / "out")
    [part] = (tmp_path / "out").glob(".hyp.*.part")
    with open(part, "a") as stream:
        stream.write('{"seconds": 0.1, "utts": {"s0-2": ["hal')  # killed in the middle of a line
    call(model_folder, data, tmp_path / "out")
    assert decoded == [2, 2, 2, 2, 1]  # two batches, the one that was killed, and again from there
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "out").glob(".hyp.*"))


def test_other_settings_do_not_take_up_an_interrupted_run(model_folder, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(verb, "write_hypotheses", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        call(model_folder, data, out)
    first = list(out.glob(".hyp.*.part"))
    with pytest.raises(KeyboardInterrupt):
        call(model_folder, data, out, "--beam", "2")
    assert len(first) == 1 and len(list(out.glob(".hyp.*.part"))) == 2


def test_segments_are_read(model_folder, tmp_path):
    samples = make_audio(3, 4.0)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    entry = {"utt": "a", "spk": "s", "text": "x", "wav": str(tmp_path / "a.wav"), "start": 1.0, "end": 2.5, "duration": 1.5}
    (tmp_path / "data.jsonl").write_text(json.dumps(entry) + "\n")
    call(model_folder, tmp_path / "data.jsonl", tmp_path / "out")
    stored = soundfile.read(tmp_path / "a.wav", dtype="float32")[0][16000:40000]
    wanted = WhisperDecoder(model_folder, timestamps=True).transcribe([stored])[0].text
    assert (tmp_path / "out" / "text").read_text().split(" ", 1)[1].strip() == wanted


def test_bad_input_is_named(model_folder, data, tmp_path):
    with pytest.raises(UserError, match="English only"):
        call(model_folder, data, tmp_path / "out", "--language", "fr")
    with pytest.raises(UserError, match="at least 1"):
        call(model_folder, data, tmp_path / "out", "--beam", "0")
    os.truncate(tmp_path / "3.wav", 0)
    with pytest.raises(UserError, match=r"3\.wav: empty"):
        call(model_folder, data, tmp_path / "out")
    (tmp_path / "short.jsonl").write_text(json.dumps({"utt": "a", "spk": "a", "text": "", "duration": 1.0}) + "\n")
    with pytest.raises(UserError, match=r"short\.jsonl:1: no 'wav'"):
        call(model_folder, tmp_path / "short.jsonl", tmp_path / "out")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="no utterance"):
        call(model_folder, tmp_path / "none.jsonl", tmp_path / "out")


def test_a_model_without_vocabulary_takes_the_catalog_s(model_folder, table, tmp_path, monkeypatch):
    from steermoe import fetch

    for file in model_folder.iterdir():
        if file.suffix != ".tiktoken":
            (tmp_path / file.name).symlink_to(file)
    asked = []
    monkeypatch.setattr(fetch, "find_model", lambda name, kind: asked.append((name, kind)) or model_folder)
    assert WhisperDecoder(tmp_path).tokens.table == table
    assert asked == [("whisper-vocabulary", "vocabulary")] and "whisper-vocabulary" in fetch.catalog()


# ---- real speech

# tiny.en, greedy, without timestamps, as ctranslate2 4.8.5 writes it (all 78 excerpts are equal; these are the first).
SPEECH = {
    "163-122947-0000": "Chapter 7, Our virtues.",
    "163-122947-0009": "Indeed, at times the higher and sublime thing takes place, we learn to despise when we love, and "
    "precisely when we love best. All of it, however, unconsciously, without noise,",
    "163-122947-0014": "for they get the better, even of their blunders.",
}


@pytest.mark.slow
def test_real_speech_by_tiny_en(shared_data):
    from steermoe.fetch import cache_dir

    path = cache_dir() / "models" / "whisper-tiny.en"
    if not path.is_dir():
        pytest.skip("whisper-tiny.en is not in the cache; python -m steermoe.bin.fetch whisper-tiny.en")
    folder = shared_data / "LibriSpeech" / "test-clean" / "163" / "122947"
    audio = [soundfile.read(folder / f"{utt}.flac", dtype="float32")[0] for utt in SPEECH]
    assert [transcript.text for transcript in WhisperDecoder(path).transcribe(audio)] == list(SPEECH.values())
