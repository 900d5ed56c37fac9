"""egs/spoken_tools: lists of queries, speech by any synthesiser, asked and resumed, judged turn by turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from recipes import ROOT, load_script
from steermoe.calling.tools import Tools
from steermoe.calling.worker import load_functions
from steermoe.checkpoint import save_adapter
from steermoe.data.kaldi_files import read_map
from steermoe.data.synthesis import sentences
from steermoe.errors import UserError
from steermoe.files import read_jsonl

RECIPE = ROOT / "egs" / "spoken_tools"
TTS = f"""{sys.executable} -c "import sys, numpy, soundfile; soundfile.write(sys.argv[2], \
numpy.random.default_rng(len(sys.argv[1])).normal(0, .1, 4000), 16000)" {{text}} {{wav}}"""
QUERY = {"say": "weather in Rome?", "tool": "get_weather", "arguments": {"city": ["Rome", "Roma"]}, "answer": ["gold"]}
PLAIN = {"say": "what is two plus three?", "tool": None, "arguments": {}, "answer": ["5", "five"]}


@pytest.fixture(scope="module")
def scripts():
    return {name: load_script(f"spoken_tools/local/{name}.py") for name in ("queries", "speak", "ask", "score")}


def write_queries(path: Path, *queries) -> Path:
    lines = [{"id": f"q{i}", "kind": "k", "turns": list(turns)} for i, turns in enumerate(queries, 1)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in (RECIPE / "queries").glob("*.jsonl")))
def test_the_recipes_lists_fit_its_tools(scripts, name):
    parameters = Tools(load_functions(RECIPE / "tools.py")).parameters
    queries = scripts["queries"].read_queries(RECIPE / "queries" / f"{name}.jsonl")
    assert len({query["id"] for query in queries}) == len(queries)
    for turn in (turn for query in queries for turn in query["turns"]):
        assert turn["tool"] is None or set(turn["arguments"]) == set(parameters[turn["tool"]]["properties"])


def test_the_papers_answer():
    tools = load_script("spoken_tools/tools.py")
    assert tools.get_weather("上海") == "上海今天下黄金" and "gold in Rome" in tools.get_weather("Rome")


def test_what_a_list_lacks_is_named(scripts, tmp_path):
    path = write_queries(tmp_path / "q.jsonl", [QUERY], [{"say": "x"}])
    with pytest.raises(UserError, match=r"q.jsonl:2: a turn has no 'answer'"):
        scripts["queries"].read_queries(path)


def test_speech_by_any_command_and_once(scripts, tmp_path):
    path = write_queries(tmp_path / "q.jsonl", [QUERY, PLAIN], [PLAIN])
    words = ["--queries", str(path), "--out", str(tmp_path / "data"), "--tts", TTS]
    scripts["speak"].main(words)
    assert read_map(tmp_path / "data" / "text")["tts-q1-2"] == "what is two plus three?"
    wavs = {wav: Path(wav).stat().st_mtime_ns for wav in read_map(tmp_path / "data" / "wav.scp").values()}
    write_queries(path, [QUERY, PLAIN], [PLAIN | {"say": "and now?"}])
    scripts["speak"].main(words)
    again = {wav: Path(wav).stat().st_mtime_ns for wav in read_map(tmp_path / "data" / "wav.scp").values()}
    assert len(wavs) == 3 and len(wavs.items() & again.items()) == 2  # only the text that has changed is spoken anew
    speech = scripts["ask"].read_speech(tmp_path / "data", scripts["queries"].read_queries(path))
    assert sorted(speech["tts"]) == ["q1-1", "q1-2", "q2-1"]


@pytest.mark.parametrize(
    "tts, message",
    [
        ("say {text}", r"no \{wav\} in it"),
        ("nowhere-to-be-found {text} {wav}", "stage -1 .* fetches flite"),
        ("false {text} {wav}", "status 1"),
    ],
)
def test_a_synthesiser_that_does_not_work(scripts, tmp_path, tts, message):
    path = write_queries(tmp_path / "q.jsonl", [QUERY])
    with pytest.raises(UserError, match=message):
        scripts["speak"].main(["--queries", str(path), "--out", str(tmp_path / "data"), "--tts", tts])


def test_mandarin_sentences_to_train_on_are_not_those_that_are_asked(scripts, tmp_path):
    mandarin = load_script("spoken_tools/local/mandarin.py")
    mandarin.main(["--queries", str(RECIPE / "queries" / "tools_zh.jsonl"), "--out", str(tmp_path / "new" / "text")])
    written = sentences([tmp_path / "new" / "text"], range(2, 31), mandarin=True)
    asked = scripts["queries"].utterances(scripts["queries"].read_queries(RECIPE / "queries" / "tools_zh.jsonl")).values()
    asked = {said.rstrip("。？?") for said in asked}
    assert len(written) > 1000 and not asked & set(written) and "上海现在几点了" in written
    assert set("".join(asked)) <= set("".join(written))  # every character that is asked can be learned
    assert asked & set(mandarin.sentences())  # left out, not unthought of


def call(name: str, error: str | None = None, **arguments) -> dict:
    return {"name": name, "arguments": arguments, "result": None if error else "r", "error": error}


@pytest.mark.parametrize(
    "wanted, calls, answer, right",
    [
        (QUERY, [call("get_weather", city=" rome")], "It rains Gold.", (True, True, True)),
        (QUERY, [call("get_weather", city="Paris")], "It rains gold.", (True, False, True)),
        (QUERY, [call("get_weather", city="Paris"), call("get_weather", city="Roma")], "no", (True, True, False)),
        (QUERY, [call("get_time", city="Rome")], "gold", (False, False, True)),
        (QUERY, [call("get_weather", "no such city", city="Rome")], "marigolds", (False, False, False)),
        (PLAIN, [], "It is 5.", (True, True, True)),
        (PLAIN, [], "It is 15.", (True, True, False)),
        (PLAIN, [call("get_time", city="x")], "five", (False, False, True)),
    ],
)
def test_a_turn_is_judged(scripts, wanted, calls, answer, right):
    judged = scripts["score"].judge(wanted, {"answer": answer, "calls": calls, "ended": "end"})
    assert tuple(judged.values()) == (*right, all(right))


@pytest.fixture(scope="module")
def adapter(tiny_bases, tmp_path_factory):
    from steermoe.config import config_from_dict
    from steermoe.model import SteerMoE

    whisper, llm = ({"model": str(tiny_bases / name), "dtype": "float32"} for name in ("whisper", "llm"))
    config = config_from_dict({"encoder_conf": whisper, "llm_conf": llm, "steering_conf": {"num_experts": 2}})
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_adapter(path, SteerMoE.from_config(config), config, 0, {})
    return path


def test_asked_killed_and_asked_again_gives_the_same_answers(scripts, adapter, tmp_path, monkeypatch, capsys):
    path = write_queries(tmp_path / "q.jsonl", [PLAIN, PLAIN], [PLAIN | {"answer": []}])
    scripts["speak"].main(["--queries", str(path), "--out", str(tmp_path / "data"), "--tts", TTS])
    words = ["--model", str(adapter), "--queries", str(path), "--data", str(tmp_path / "data"), "--max-tokens", "4"]
    words += ["--conditions", "text alone voice"]
    scripts["ask"].main([*words, "--out", str(tmp_path / "one")])
    append, written = scripts["ask"].append_jsonl, []

    def killed_at_the_fourth(stream, value):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(value)
        append(stream, value)

    monkeypatch.setattr(scripts["ask"], "append_jsonl", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        scripts["ask"].main([*words, "--out", str(tmp_path / "two")])
    monkeypatch.setattr(scripts["ask"], "append_jsonl", append)
    scripts["ask"].main([*words, "--out", str(tmp_path / "two")])
    answers = [list(read_jsonl(tmp_path / name / "answers.jsonl")) for name in ("one", "two")]
    assert answers[0] == answers[1] and len(answers[0]) == 6
    said = [[turn["answer"] for turn in answer["turns"]] for answer in answers[0]]
    assert said[0] == said[1] and said[3] == said[4]  # with the adapter and without
    scripts["score"].main(["--queries", str(path), "--out", str(tmp_path / "two")])
    report = (tmp_path / "two" / "RESULTS.md").read_text()
    assert "|voice|all|2|" in report and "2 of 2 answers are identical" in report and report.strip() in capsys.readouterr().out


def test_a_transcript_that_is_the_text_is_not_asked_again(scripts, adapter, tmp_path, monkeypatch):
    path = write_queries(tmp_path / "q.jsonl", [PLAIN], [QUERY, PLAIN])
    scripts["speak"].main(["--queries", str(path), "--out", str(tmp_path / "data"), "--tts", TTS])
    transcripts = {"tts": {"q1-1": PLAIN["say"], "q2-1": QUERY["say"], "q2-2": "what is two plus tree?"}}
    asked, ask = [], scripts["ask"].ask
    monkeypatch.setattr(scripts["ask"], "own_transcripts", lambda args, speech: transcripts)
    monkeypatch.setattr(scripts["ask"], "ask", lambda talk, says, parts: asked.append(says) or ask(talk, says, parts))
    words = ["--model", str(adapter), "--queries", str(path), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    scripts["ask"].main([*words, "--max-tokens", "4", "--conditions", "text transcript"])
    answers = {(a["condition"], a["id"]): a["turns"] for a in read_jsonl(tmp_path / "out" / "answers.jsonl")}
    assert [len(says) for says in asked] == [1, 2, 2] and asked[2][1] == transcripts["tts"]["q2-2"]
    assert answers["transcript", "q1"] == answers["text", "q1"]
    assert [turn["said"] for turn in answers["transcript", "q2"]] == list(asked[2])


def test_another_llm_is_asked_what_the_adapter_reads(scripts, tiny_config, tmp_path):
    from steermoe.model import SteerMoE

    tiny_config.projector, tiny_config.projector_conf = "token", {"frames_conf": {"kernel": 8}, "units": "bytes"}
    tiny_config.decode_conf.ctc_weight = 1.0
    save_adapter(tmp_path / "adapter.safetensors", SteerMoE.from_config(tiny_config), tiny_config, 0, {})
    path = write_queries(tmp_path / "q.jsonl", [PLAIN])
    scripts["speak"].main(["--queries", str(path), "--out", str(tmp_path / "data"), "--tts", TTS])
    words = ["--model", str(tmp_path / "adapter.safetensors"), "--queries", str(path), "--data", str(tmp_path / "data")]
    words += ["--conditions", "text voice", "--max-tokens", "4", "--out", str(tmp_path / "out")]
    scripts["ask"].main([*words, "--talker", tiny_config.llm_conf["model"]])
    text, voice = (answer["turns"][0] for answer in read_jsonl(tmp_path / "out" / "answers.jsonl"))
    scripts["ask"].main([*words, "--talker", tiny_config.llm_conf["model"], "--system", "be brief"])  # other settings: asked anew
    assert next(read_jsonl(tmp_path / "out" / "answers.jsonl"))["turns"][0]["answer"] != text["answer"]
    tiny_config.decode_conf.min_confidence = 1.0  # edited after training: nothing is sure enough
    tiny_config.save(tmp_path / "config.yaml")
    scripts["ask"].main([*words, "--talker", tiny_config.llm_conf["model"], "--system", "be brief"])
    assert [a["turns"][0]["heard"] for a in read_jsonl(tmp_path / "out" / "answers.jsonl") if a["condition"] == "voice"] == [""]
    assert "heard" not in text and isinstance(voice["heard"], str) and voice["heard"] != PLAIN["say"] == voice["said"]


@pytest.mark.parametrize(
    "words, message",
    [(["--conditions", "song"], "known are text"), (["--tools", "tools.py", "--conditions", "alone"], "no tool loop")],
)
def test_conditions_that_cannot_be_asked(scripts, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        scripts["ask"].main(["--queries", "q", "--data", str(tmp_path), "--out", str(tmp_path), *words])


def test_a_recording_that_is_missing_is_named(scripts, tmp_path):
    (tmp_path / "wav.scp").write_text("my-voice-q1-1 a.wav\n")
    queries = scripts["queries"].read_queries(write_queries(tmp_path / "q.jsonl", [QUERY, PLAIN]))
    with pytest.raises(UserError, match="no utterance my-voice-q1-2"):
        scripts["ask"].read_speech(tmp_path, queries)
    (tmp_path / "wav.scp").write_text("my-voice-other-1 a.wav\n")
    with pytest.raises(UserError, match="no utterance VOICE-q1-1"):
        scripts["ask"].read_speech(tmp_path, queries)
