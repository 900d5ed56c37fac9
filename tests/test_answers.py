"""Questions about audio: what stages 1 and 2 keep of them, how answers are scored, what the driver makes of that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from test_pipeline import Recipe

from steermoe.bin import dump, prepare_text, results, score_answers, show_result
from steermoe.data.ark import read_matrix
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.kaldi_dir import write_map
from steermoe.data.kaldi_files import spk2utt_of
from steermoe.errors import UserError
from steermoe.files import read_json, write_json
from steermoe.score.answers import contains, interval, read_questions, summarize

# utterance, type, text, answers of the annotators, what the system says
QUESTIONS = [
    ("a-1", "is", "yes", "yes|yes|no", "Yes."),
    ("a-2", "is", "no", "no|no|no", "yes"),
    ("a-3", "what", "two", "two|two|three", "2"),
    ("b-1", "what", "dog", "dog|dog|cat", "a dog"),
    ("b-2", "is", "yes", "yes|yes|yes", "yes"),
    ("b-3", "what", "rain", "rain|water|wind", "rain"),
]


def write_questions(folder, questions=QUESTIONS):
    folder.mkdir(exist_ok=True)
    with open(folder / "data.jsonl", "w") as data, open(folder / "hyp.trn", "w") as hyp:
        for utt, kind, text, rows, said in questions:
            entry = {"utt": utt, "spk": utt[0], "text": text, "prompt": f"{kind}?", "question_type": kind}
            data.write(json.dumps(entry | ({"answers": rows} if rows else {})) + "\n")
            hyp.write(f"{said} ({utt[0]}-{utt})\n")
    return folder


def score(folder):
    score_answers.main(["--data", str(folder / "data.jsonl"), "--hyp", str(folder / "hyp.trn"), "--out", str(folder)])
    return read_json(folder / "summary.json")


def test_scores_by_hand(tmp_path, capsys):
    summary = score(write_questions(tmp_path))
    answers = summary["answers"]
    # b-3 is left out: no two annotators agree. "a dog" is not "dog"; "2" and "Yes." are what the normaliser makes of two and yes.
    assert (summary["n"], summary["c"], summary["s"], summary["sentences"], summary["rate"]) == (5, 3, 2, 5, 40.0)
    assert summary["line"].startswith("Accuracy 60.00 [") and summary["line"].endswith("N=5 C=3 clips=2")
    exact = {name: round(found["accuracy"], 2) for name, found in answers["exact"].items()}
    assert exact == {"all": 60, "yes or no": 66.67, "other answers": 50, "macro average": 58.33}
    floors = {floor["name"]: (round(floor["accuracy"], 2), round(floor["difference"], 2)) for floor in answers["floors"]}
    assert floors == {
        'always "yes"': (40, 20),
        'always "no"': (20, 40),
        "each question type's most frequent answer": (60, 0),
        "chance among each question type's answers": (50, 10),
    }
    assert {kind: (f["right"], f["n"], f["best constant"]) for kind, f in answers["types"].items()} == {
        "is": (2, 3, "yes"), "what": (1, 2, "2"),
    }  # fmt: skip
    rows = answers["annotations"]
    substring = {name: found["right"] for name, found in rows["substring"].items()}
    # ours: "Yes." 2, "yes" 0, "2" 0, "a dog" 2, "yes" 3, "rain" 1
    assert rows["n"] == 18 and substring == {"ours": 8, 'always "yes"': 5, 'always "yes no"': 9, "majority oracle": 13}
    assert rows["exact"]['always "yes no"']["right"] == 0
    report = (tmp_path / "result.txt").read_text()
    assert "the 5 of 6 questions on which at least two annotators agree, 2 clips" in report
    assert "There is one clip" not in report
    assert "WRONG  b-1\n  question: what?\n  REF: dog | dog | cat\n  HYP: a dog\n" in report
    assert "right (annotators disagree)  b-3" in report and "substring (paper)" in report
    capsys.readouterr()
    score(tmp_path)
    assert "up to date" in capsys.readouterr().err


def test_one_annotator_and_an_empty_answer(tmp_path):
    questions = [("a-1", "what", "hmm", "", ""), ("b-1", "what", "cow", "", "cow"), ("c-1", "what", "cow", "", "")]
    summary = score(write_questions(tmp_path, questions))
    assert (summary["n"], summary["c"]) == (3, 1)  # the normaliser leaves nothing of "hmm", and nothing is no answer
    assert "annotations" not in summary["answers"] and list(summary["answers"]["exact"]) == ["all", "other answers"]
    assert 'always "cow"' in [floor["name"] for floor in summary["answers"]["floors"]]
    assert "paper" not in (tmp_path / "result.txt").read_text()


def test_intervals_of_one_clip_are_said_to_say_nothing(tmp_path):
    score(write_questions(tmp_path, QUESTIONS[:3]))
    assert "1 clips. " in (tmp_path / "result.txt").read_text() and "There is one clip" in (tmp_path / "result.txt").read_text()


def test_the_papers_measure():
    assert contains("Yes", "yes") and contains("yes no", "no") and contains("bird", "birds")
    assert not contains("", "yes") and not contains("cat", "dog")


def test_intervals_draw_whole_clips():
    ten_of_each = np.array([[10.0, 10.0]] * 20 + [[0.0, 10.0]] * 20)
    low, high = interval(ten_of_each, lambda sums: 100 * sums[0] / sums[1])
    assert 30 < low < 40 and 60 < high < 70  # 40 clips; 400 independent questions would give 45 to 55


@pytest.mark.parametrize(
    "questions, hyps, message",
    [
        (QUESTIONS, "yes (a-a-1)\n", "no line for (a-a-2)"),
        (QUESTIONS[-1:], None, "no question on which 2 annotators agree"),
    ],
)
def test_refused(tmp_path, questions, hyps, message):
    write_questions(tmp_path, questions)
    if hyps:
        (tmp_path / "hyp.trn").write_text(hyps)
    with pytest.raises(UserError) as error:
        score(tmp_path)
    assert message in str(error.value)


def test_results_and_the_table_of_all_experiments(tmp_path):
    exp = tmp_path / "exp" / "x"
    (exp / "log").mkdir(parents=True)
    summary = score(write_questions(exp / "decode_test"))
    write_json(exp / "environment.json", dict.fromkeys(("git", "python", "torch", "transformers", "processor", "gpu"), "?"))
    (exp / "log" / "train.jsonl").write_text(json.dumps({"step": 1, "seconds": 1, "dev_loss": 2.0}) + "\n")
    (exp / "model_info.txt").write_text("a table\n")
    (exp / "config.yaml").write_text("encoder: whisper\n")
    made = results.make_results(exp, None)
    assert "answers after normaliser `english`; intervals: bootstrap by clip" in made
    assert "|test|5|5|60.0|40.0|0.0|0.0|40.0|40.0|" in made and "## Answers on test" in made and "macro average" in made
    assert "answer" in show_result.make_table([exp]) and summary["unit"] == "answer"


def test_stages_1_and_2_keep_the_question_and_share_the_clips_features(tmp_path, tiny_bases, capsys):
    for clip in "ab":
        soundfile.write(tmp_path / f"{clip}.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    utts = ["a-1", "a-2", "b-1"]
    data = tmp_path / "data"
    write_map(data / "wav.scp", {utt: tmp_path / f"{utt[0]}.wav" for utt in utts})
    write_map(data / "utt2spk", {utt: utt[0] for utt in utts})
    write_map(data / "spk2utt", spk2utt_of({utt: utt[0] for utt in utts}))
    write_map(data / "text", dict(zip(utts, ["yes", "dog", "hello"])))
    write_map(data / "question", {"a-1": "Is it?", "a-2": "What?"})
    write_map(data / "question_type", {"a-1": "is", "a-2": "what"})
    write_map(data / "answers", {"a-1": "yes|yes|no"})
    config = tmp_path / "train.yaml"
    models = {"encoder_conf": {"model": str(tiny_bases / "whisper")}, "llm_conf": {"model": str(tiny_bases / "llm")}}
    config.write_text(json.dumps(models))
    common = ["--config", str(config), "--data", str(data)]
    for nj in (1, 2):
        out = tmp_path / f"dump{nj}"
        for job in [*range(1, nj + 1), 0]:
            dump.main([*common, "--out", str(out), "--nj", str(nj), "--job", str(job)])
        scp = dict(line.split() for line in (out / "feats.scp").read_text().splitlines())
        assert list(scp) == utts and scp["a-1"] == scp["a-2"] != scp["b-1"] or nj == 2
        assert all((read_matrix(scp[utt]) == read_matrix(scp["b-1"])).all() for utt in utts)
    prepare_text.main([*common, "--feats", str(tmp_path / "dump1"), "--out", str(tmp_path / "data.jsonl")])
    first, second, third = AudioTextDataset(tmp_path / "data.jsonl").entries
    assert (first["prompt"], first["question_type"], first["answers"]) == ("Is it?", "is", "yes|yes|no")
    assert second["prompt"] == "What?" and "answers" not in second
    assert not {"prompt", "question_type", "answers"} & third.keys()


def test_a_question_knows_what_is_right(tmp_path):
    questions = read_questions(*[write_questions(tmp_path) / name for name in ("data.jsonl", "hyp.trn")], "none")
    assert [question.right for question in questions] == [False, False, False, False, True, True]  # as written, without a normaliser
    assert summarize(questions, "none")["c"] == 1


def test_the_driver_takes_the_scorer_of_answers(tmp_path):
    recipe = Recipe(tmp_path / "repository")
    status, out, err = recipe.run("--decode-conf.unit", "answer", "--own-score", "false")
    assert status == 0, err
    scorers = [line for line in recipe.calls() if line.startswith("score")]
    folder = "exp/whisper/decode_test_unitanswer"
    data = "dump/whisper_feats/test/data.jsonl"
    assert scorers == [f"score_answers --data {data} --hyp {folder}/hyp.trn --normalizer english --out {folder}"]
    assert "Accuracy 60.00 [50.00, 70.00] N=5 C=3 clips=2" in out
