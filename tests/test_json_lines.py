"""Lines of JSON that are parsed when they are asked for."""

import os
import tracemalloc

import pytest

import tiny
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.files import JsonLines


def test_any_line_in_any_order(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": "é\u2028"}\n{"a": 3}', encoding="utf-8")  # the last without its newline
    lines = JsonLines(path)
    assert len(lines) == 3 and lines[-1] == {"a": 3} and lines[1] == {"a": "é\u2028"} and [line["a"] for line in lines][0] == 1
    with pytest.raises(IndexError):
        lines[3]


def test_the_file_that_was_opened_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    lines = JsonLines(path)
    (tmp_path / "new").write_text('{"a": 22222}\n')
    os.replace(tmp_path / "new", path)
    assert lines[0] == {"a": 1}


@pytest.mark.parametrize(("content", "message"), [(b'{"a": 1}\n{"a"\n', "x.jsonl:2: not JSON"), (b"{}\n\xff\n", "x.jsonl:2: not UTF-8")])
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(JsonLines(path))
    with pytest.raises(UserError, match="no such file"):
        JsonLines(tmp_path / "y.jsonl")


def test_a_data_set_takes_a_few_bytes_an_utterance(tmp_path):
    path = tiny.make_dataset(tmp_path, [50])
    path.write_text(path.read_text() * 20_000)
    tracemalloc.start()
    data = AudioTextDataset(path)
    used = tracemalloc.get_traced_memory()[0] / len(data)
    tracemalloc.stop()
    assert len(data) == 20_000 and data.entries[19_999]["utt"] == "spk0-train000" and used < 40
