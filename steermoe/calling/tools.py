"""Python functions that an LLM may call: their schemas, what a call must satisfy, and running it with a time limit.

Nothing runs that is not in the list, and nothing that a function does ends the conversation: an exception, an exit or a hang
becomes an error that the LLM is told.
"""

from __future__ import annotations

import inspect
import queue
import threading
from pathlib import Path
from typing import Callable, Sequence

from steermoe.calling.parse import Call
from steermoe.calling.results import as_text, schemas_of
from steermoe.calling.schema import violation
from steermoe.calling.worker import Worker
from steermoe.errors import UserError
from steermoe.registry import nearest


class Tools:
    """tools: functions with type hints and a docstring (Google's form, with an Args section), or a Python file of them.

    The functions of a file (those whose names begin with no underscore) run in a process of their own, which is ended when the
    time is over. Functions given as objects run in threads, which can only be left behind: one goes on until its function
    returns, and C code that never lets Python go on holds up everything. Give those as a file.
    """

    def __init__(self, tools: Callable | Sequence[Callable] | str | Path, seconds: float = 10.0):
        if seconds <= 0:
            raise UserError(f"tool_seconds: {seconds:g} is no time; give seconds above 0")
        self.seconds = seconds
        if isinstance(tools, (str, Path)):
            self.runner: Worker | Threads = Worker(tools)
            self.schemas = self.runner.schemas
        else:
            functions = [tools] if callable(tools) else list(tools)
            self.runner = Threads(functions)
            self.schemas = schemas_of(functions)
        self.parameters = {schema["function"]["name"]: schema["function"]["parameters"] for schema in self.schemas}

    def check(self, call: Call) -> str | None:
        """Why this call may not run: an unknown function, a missing or unknown argument, a wrong type; None if it may."""
        if call.name not in self.parameters:
            return f"there is no function {call.name!r}{nearest(call.name, list(self.parameters))}"
        return violation(call.arguments, self.parameters[call.name])

    def run(self, call: Call) -> None:
        """Runs a call that `check` has passed and fills in its result, or its error."""
        call.result, call.error = self.runner.run(call.name, call.arguments, self.seconds)


class Threads:
    """Runs functions of this process in threads."""

    def __init__(self, functions: Sequence[Callable]):
        self.functions = {function.__name__: function for function in functions if inspect.isroutine(function)}
        if len(self.functions) < len(functions):
            raise UserError("tools: a list of different Python functions is needed, each with a name of its own")
        self.busy: dict[str, threading.Thread] = {}

    def run(self, name: str, arguments: dict, seconds: float) -> tuple[str | None, str | None]:
        """-> (result, None) or (None, error)."""
        if name in self.busy and self.busy[name].is_alive():
            return None, f"{name} is still at work on an earlier call"
        done: queue.Queue = queue.Queue()

        def work() -> None:
            try:
                done.put((as_text(self.functions[name](**arguments)), None))
            except BaseException as error:  # SystemExit too: a tool does not end the conversation
                done.put((None, f"{type(error).__name__}: {error}"))

        self.busy[name] = threading.Thread(target=work, name=f"tool {name}", daemon=True)
        self.busy[name].start()
        try:
            return done.get(timeout=seconds)
        except queue.Empty:
            return None, f"{name} has not answered within {seconds:g} s"
