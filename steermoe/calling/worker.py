"""A process that holds a file of tools: calls go in and results come out as JSON lines; it can be ended without harm.

Run as `python -m steermoe.calling.worker FILE [schemas]`. What a tool prints goes to standard error, never between the results.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from steermoe.calling.results import as_text, schemas_of
from steermoe.errors import UserError

MODULE = "steermoe_tools_file"  # a name that no import statement in it can mean
START_SECONDS = 600.0  # to import the file, which may import much on a busy machine


class Worker:
    """The conversation's side. schemas: of the file's functions. UserError if it cannot be imported or has no tool."""

    def __init__(self, file: str | Path):
        self.file = Path(file)
        if not self.file.is_file():
            raise UserError(f"{self.file}: no such file; it holds the functions that the LLM may call")
        self.process: subprocess.Popen | None = None
        self.schemas = self._start("schemas")

    def run(self, name: str, arguments: dict, seconds: float) -> tuple[str | None, str | None]:
        """-> (result, None) or (None, error). The process is ended when the time is over; the next call gets a new one."""
        if self.process is None:
            try:
                self._start()
            except UserError as error:
                return None, str(error)
        try:
            self.process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
            answer = self._read(seconds)
        except TimeoutError:
            return None, f"{name} has not answered within {seconds:g} s"
        except OSError:  # it has ended by itself since the last call
            self.stop()
            return None, f"{name}: the tools' process has ended"
        return answer.get("result"), answer.get("error")

    def stop(self) -> None:
        if self.process is not None:
            self._end()
            self.process = None

    def _start(self, *words: str) -> list[dict]:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "steermoe.calling.worker", str(self.file), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the conversation
        )
        self._end = weakref.finalize(self, _end, self.process)  # with the conversation, and at the interpreter's end
        self.lines: queue.Queue = queue.Queue()
        threading.Thread(target=_pass_on, args=(self.process.stdout, self.lines), daemon=True).start()
        try:
            begun = self._read(START_SECONDS)
        except TimeoutError:
            begun = {"error": f"{self.file}: its import has not ended within {START_SECONDS:g} s"}
        if "schemas" not in begun:
            self.stop()
            raise UserError(begun.get("error", f"{self.file}: the import has ended the process"))
        return begun["schemas"]

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line. TimeoutError ends the process; one that has ended by itself is an error that can be told."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            raise TimeoutError from None
        except BaseException:  # Ctrl-C: the answer would be taken for that of the next call
            self.stop()
            raise
        if line is None:
            self.stop()
            return {"error": "the function has ended its process"}
        return json.loads(line)


def _end(process: subprocess.Popen) -> None:
    """With all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    except OSError:
        pass
    process.wait()
    try:
        process.stdin.close()
    except OSError:  # what could not be written any more
        pass


def _pass_on(stream, lines: queue.Queue) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def load_functions(file: Path) -> list:
    """The public functions that are written in the file, in their order. UserError if it cannot be imported or has none."""
    spec = importlib.util.spec_from_file_location(MODULE, file)
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module
        sys.path.insert(0, str(file.resolve().parent))
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = getattr(error, "lineno", None)
        trace = error.__traceback__
        while line is None and trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(file) else None
            trace = trace.tb_next
        raise UserError(f"{file}:{line or 1}: {type(error).__name__}: {error}") from None
    public = [value for name, value in vars(module).items() if not name.startswith("_")]
    functions = [value for value in public if inspect.isfunction(value) and value.__module__ == MODULE]
    if not functions:
        raise UserError(f"{file}: no function in it that could be called; write one with type hints and a docstring")
    return functions


def main() -> None:
    """The tools' side."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # a process that is ended has shown what it printed

    def answer(value: dict) -> None:
        print(json.dumps(value, ensure_ascii=False), file=out, flush=True)

    try:
        functions = load_functions(Path(sys.argv[1]))
        answer({"schemas": schemas_of(functions) if sys.argv[2:] else []})  # what makes them takes seconds to import
    except UserError as error:
        answer({"error": str(error)})
        return
    calls: queue.Queue = queue.Queue()
    threading.Thread(target=_pass_on_or_end, args=(calls,), daemon=True).start()
    by_name = {function.__name__: function for function in functions}
    while True:
        call = json.loads(calls.get())
        try:
            answer({"result": as_text(by_name[call["name"]](**call["arguments"]))})
        except BaseException as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def _pass_on_or_end(calls: queue.Queue) -> None:
    """A conversation that is gone takes a tool that hangs along."""
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
