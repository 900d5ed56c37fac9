"""Tool calls: every family's form, what does not fit its schema, functions that raise, hang, exit and print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steermoe.calling.parse import Call, parse_calls
from steermoe.calling.results import MAX_RESULT, as_text, schemas_of
from steermoe.calling.schema import strict, violation
from steermoe.calling.tools import Tools
from steermoe.calling.worker import load_functions
from steermoe.errors import UserError
from tool_functions import FUNCTIONS, get_weather, plan

SHANGHAI = {"city": "上海"}
JSON = '{"name": "get_weather", "arguments": {"city": "上海"}}'


@pytest.mark.parametrize(
    "text, said, calls",
    [
        (f"<tool_call>\n{JSON}\n</tool_call>", "", [("get_weather", SHANGHAI)]),
        (f"Let me see.\n<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}", "Let me see.", [("get_weather", SHANGHAI)] * 2),
        (f"<tool_call>[{JSON}, {JSON}]</tool_call>", "", [("get_weather", SHANGHAI)] * 2),
        (f"I call:\n```json\n{JSON}\n```", "I call:", [("get_weather", SHANGHAI)]),
        (f"```\n{JSON}", "", [("get_weather", SHANGHAI)]),
        (f"<tools>\n{JSON}\n</tools>", "", [("get_weather", SHANGHAI)]),
        (JSON, "", [("get_weather", SHANGHAI)]),
        (f"```json\n{{{JSON}}}\n```", "", [("get_weather", SHANGHAI)]),  # braces doubled, as Qwen2.5-Coder's template shows them
        (f"<tool_call>{{{JSON}</tool_call>", "", [("get_weather", SHANGHAI)]),
        ('{"name": "get_weather", "parameters": {"city": "上海"}}', "", [("get_weather", SHANGHAI)]),
        ('<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}<|eom_id|>', "", None),
        ('<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", {}), ("g", {})]),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}', "", None),
        ('[{"name": "f", "arguments": "{\\"x\\": 1}"}]', "", [("f", {"x": 1})]),
        ('{"name": "f"}', "", [("f", {})]),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', "", [("f", {"x": "?"})]),  # no encoding holds half of a pair
        (f"[TOOL_CALLS] [{JSON}]", "", [("get_weather", SHANGHAI)]),
        ('[TOOL_CALLS]f{"x": 1}[TOOL_CALLS]g[ARGS]{}', "", [("f", {"x": 1}), ("g", {})]),
        ("It rains.", "It rains.", []),
        ('Write {"name": "x"} to call.', 'Write {"name": "x"} to call.', []),
        ('```json\n{"city": "上海"}\n```', '```json\n{"city": "上海"}\n```', []),
        ("", "", []),
    ],
)
def test_calls_in_every_familys_form(text, said, calls):
    found = parse_calls(text)
    if calls is None:  # what stands around the JSON is an error or known: never an exception
        assert all(isinstance(call, Call) for call in found[1])
    else:
        assert (found[0], [(call.name, call.arguments) for call in found[1]]) == (said, calls)
        assert not any(call.error for call in found[1])


@pytest.mark.parametrize(
    "text, error",
    [
        ("<tool_call>get_weather(上海)</tool_call>", "not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": </tool_call>', "not JSON"),
        ("<tool_call></tool_call>", "empty"),
        ("<tool_call>7</tool_call>", "not an object"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'no "name"'),
        ('{"name": "f", "arguments": [1]}', "not an object"),
        ('{"name": "f", "arguments": {"x": NaN}}', "no JSON number"),
        ('<tool_call>{"name": "f", "arguments": ' + '{"x":' * 5000, "not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x":' + "[" * 200 + "]" * 200 + "}}</tool_call>", "nested too deeply"),
        ('<|python_tag|>get_weather.call(city="x")', "not JSON"),
        ("[TOOL_CALLS]f", "not JSON"),
    ],
)
def test_a_call_that_cannot_be_read_is_an_error_and_no_exception(text, error):
    (call,) = parse_calls(text)[1]
    assert error in call.error


@pytest.mark.parametrize(
    "arguments, wrong",
    [
        ({"city": "x"}, None),
        ({"city": "x", "days": 2, "units": "F", "hours": [1, 2.5], "rough": True}, None),
        ({"city": "x", "hours": None}, None),
        ({}, "missing argument 'city'"),
        ({"city": 3}, "city must be of type string, not 3"),
        ({"city": "x", "days": "2"}, 'days must be of type integer, not "2"'),
        ({"city": "x", "days": 2.0}, "days must be of type integer"),
        ({"city": "x", "days": True}, "days must be of type integer"),
        ({"city": "x", "days": None}, "days must be of type integer"),
        ({"city": "x", "units": "K"}, "units must be one of"),
        ({"city": "x", "hours": [1, "two"]}, r"hours\[1\] must be of type number"),
        ({"city": "x", "town": "y"}, "unknown argument 'town'; the arguments are city, days"),
    ],
)
def test_arguments_against_the_schema(arguments, wrong):
    schema = schemas_of([plan])[0]["function"]["parameters"]
    found = violation(arguments, schema)
    assert found is None if wrong is None else re.search(wrong, found), found


def test_nested_types_and_unions():
    properties = {
        "x": {"type": ["integer", "string"]},
        "y": {"anyOf": [{"type": "number"}, {"type": "array"}]},
        "z": {"type": "object", "additionalProperties": {"type": "integer"}},
        "p": {"type": "array", "prefixItems": [{"type": "string"}]},
    }
    schema = {"type": "object", "properties": properties}
    assert violation({"x": "a", "y": [1], "z": {"k": 1}, "p": ["a"]}, schema) is None
    assert all(violation(bad, schema) for bad in ({"x": 1.5}, {"y": "a"}, {"z": {"k": "1"}}, {"p": []}, {"p": [1]}))


def ran(tools: Tools, name: str, /, **arguments) -> tuple:
    call = Call(name, arguments)
    tools.run(call)
    return call.result, call.error


def test_functions_in_threads():
    tools = Tools(FUNCTIONS, seconds=0.3)
    assert ran(tools, "get_weather", city="上海") == ("上海今天下黄金", None)
    assert ran(tools, "count") == ('{"十": [1, null]}', None)
    assert ran(tools, "fail", reason="no") == (None, "ValueError: no")
    assert ran(tools, "leave")[1].startswith("SystemExit")
    assert ran(tools, "hang") == (None, "hang has not answered within 0.3 s")
    assert ran(tools, "hang") == (None, "hang is still at work on an earlier call")
    assert ran(tools, "get_weather", city="x")[1] is None


def test_a_file_of_functions_runs_in_a_process_that_can_be_ended(tmp_path, capfd):
    file = tmp_path / "tools.py"
    file.write_text(
        '"""My tools."""\nfrom __future__ import annotations\nimport os, re, time\nfrom pathlib import Path\n\ncounter = 0\n\n\n'
        'def add(x: int) -> int:\n    """Adds up.\n\n    Args:\n        x: a number\n    """\n    global counter\n'
        '    counter += x\n    print("printed")\n    return counter\n\n\n'
        'def crash() -> str:\n    """Ends the process."""\n    os._exit(1)\n\n\n'
        'def match() -> bool:\n    """Holds the interpreter."""\n    return bool(re.match(r"(a+)+b", "a" * 40))\n\n\n'
        'def wrong() -> str:\n    """Raises."""\n    raise KeyError("k")\n\n\ndef _hidden():\n    pass\n'
    )
    tools = Tools(file, seconds=60)
    assert [schema["function"]["name"] for schema in tools.schemas] == ["add", "crash", "match", "wrong"]
    assert ran(tools, "add", x=2) == ("2", None) and ran(tools, "add", x=3) == ("5", None)  # one process for all calls
    assert ran(tools, "wrong") == (None, "KeyError: 'k'")
    tools.seconds = 0.5
    assert ran(tools, "match") == (None, "match has not answered within 0.5 s")
    tools.seconds = 60
    assert ran(tools, "add", x=1) == ("1", None)  # a new process
    assert ran(tools, "crash") == (None, "the function has ended its process")
    assert "printed" in capfd.readouterr().err
    assert ran(tools, "add", x=1) == ("1", None)
    process = tools.runner.process
    del tools
    assert process.poll() is not None  # nothing is left behind


@pytest.mark.parametrize(
    "text, message",
    [
        ("import nowhere_to_be_found\n", "tools.py:1: ModuleNotFoundError"),
        ("\ndef f(:\n", "tools.py:2: SyntaxError"),
        ("def f(x: int): return x\n", "tools.py:1: .*docstring"),
        ('def f(x):\n    """F.\n\n    Args:\n        x: y\n    """\n', "tools.py:1: .*type hint"),
        ("x = 1\n", "no function in it"),
        ("raise SystemExit(2)\n", "tools.py:1: SystemExit"),
    ],
)
def test_a_file_that_holds_no_tools_names_the_line(tmp_path, text, message):
    (tmp_path / "tools.py").write_text(text)
    with pytest.raises(UserError, match=message):
        schemas_of(load_functions(tmp_path / "tools.py"))


def test_what_cannot_be_a_tool():
    def many(*words: str):
        """Takes many."""

    with pytest.raises(UserError, match="no such file"):
        Tools(Path("nowhere.py"))
    with pytest.raises(UserError, match="different Python functions"):
        Tools([get_weather, get_weather])
    with pytest.raises(UserError, match="many|args"):
        Tools([many])
    with pytest.raises(UserError, match="seconds above 0"):
        Tools([get_weather], seconds=0)


def test_a_long_result_is_cut():
    assert as_text("a\ud800") == "a?"
    assert len(as_text("x" * 99999)) < MAX_RESULT + 40 and as_text(object).startswith('"<class')


def test_strict_schemas_are_plain_json_schema():
    assert strict({"type": "object", "properties": {"x": {"type": "string", "nullable": True, "description": "d"}}}) == {
        "type": "object", "additionalProperties": False, "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    }  # fmt: skip
