"""Functions that run beside the caller: in a thread, or in a forked process. `result()` waits for either.

Disk and numpy leave the interpreter free for the rest, so a thread is enough for them; Python code gains only in a process.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from typing import Any, Callable

from steermoe.errors import UserError


class Thread:
    """Calls function(*arguments) in a thread."""

    def __init__(self, function: Callable, *arguments):
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments))
        self._thread.start()

    def _run(self, function: Callable, arguments: tuple) -> None:
        try:
            self._value = function(*arguments)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Waits; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


class Process:
    """Calls function(*arguments) in a copy of this process. Start it before any thread; call stop() whatever happens."""

    def __init__(self, function: Callable, *arguments):
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:  # nothing but the answer may leave this copy: no buffers, no exit handlers
            status = 1
            try:
                os.close(reading)
                try:
                    answer = pickle.dumps((function(*arguments), None))
                except Exception as error:
                    answer = pickle.dumps((None, error))
                with open(writing, "wb") as pipe:
                    pipe.write(answer)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self._pipe = open(reading, "rb")

    def result(self) -> Any:
        """Waits; raises what the function raised, UserError if the copy was killed."""
        answer = self._pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        if status != 0:
            message = "free some memory and run the same command again"
            raise UserError(f"a process of this command was ended from outside (status {status}); {message}")
        value, error = pickle.loads(answer)  # from our own copy through a pipe that nobody else holds
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """Ends the copy if it still runs."""
        self._pipe.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def processors() -> int:
    """How many processors this process may use; 1 where there is no fork."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and hasattr(os, "fork") else 1
