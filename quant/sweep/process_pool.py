"""Run calls in processes of this machine, a fresh one for each call.

A fresh process gives all its memory back, and one that is killed takes nothing along. It reads the
call from its stdin and answers in one line on its stdout; what the called code prints goes to a log
file with its stderr. Its stdin stays open: when the parent is gone it ends, so that no worker of a
killed sweep writes beside those of the next one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.shorten import shorten_message
from .units import Outcome

END_GRACE_S = 5.0  # between asking a worker to end and ending it
# Libraries that would take all cores for each of several workers.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_COMMAND = (sys.executable, "-c", "from vlmedge.quant.sweep.process_pool import serve; serve()")


class ProcessPool:
    """At most `num_workers` processes side by side."""

    def __init__(self, num_workers: int, logs: Path, *, num_threads: int | None = None) -> None:
        """Start nothing yet.

        Args:
            num_workers: calls that run at once.
            logs: folder for what each call prints, KEY.log.
            num_threads: of the math libraries in each worker; None: they decide.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, needed at least 1")
        self._num_workers = num_workers
        self._logs = logs
        threads = {} if num_threads is None else dict.fromkeys(THREAD_VARIABLES, str(num_threads))
        # Without PYTHONSAFEPATH a file of the current folder could stand in for a library.
        self._environment = {**os.environ, **threads, "PYTHONSAFEPATH": "1"}
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def num_workers(self) -> int:
        """Calls that run at once."""
        return self._num_workers

    def start(self, key: str, function: str, kwargs: Mapping[str, Any]) -> None:
        """Begin a call in a new process."""
        request = json.dumps({"function": function, "kwargs": dict(kwargs)}, allow_nan=False)
        log = self._logs / f"{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=self._environment,
            )
        self._processes[key] = process
        threading.Thread(
            target=self._follow, args=(key, process, request, log), name=key, daemon=True
        ).start()

    def wait(self) -> Outcome:
        """Block until any call has ended."""
        outcome = self._outcomes.get()
        del self._processes[outcome.key]
        return outcome

    def close(self) -> None:
        """End all workers, the hard way if they don't listen."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _follow(self, key: str, process: subprocess.Popen[bytes], request: str, log: Path) -> None:
        """Hand over the call, wait for the answer; a thread of its own for each process."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # it died before it read: seen below
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        answer = process.stdout.read()
        code = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        if answer.endswith(b"\n"):  # a whole line: what happened behind it doesn't matter
            self._outcomes.put(Outcome(key, **json.loads(answer)))
        else:
            why = f"{describe_exit(code)} (see {log})"
            self._outcomes.put(Outcome(key, death=why))


def describe_exit(code: int) -> str:
    """How a worker ended that gave no answer."""
    if code >= 0:
        return f"the worker ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"the worker was ended by signal {name}"


def call_function(function: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Call "package.module:name" -> {"value": ...} or {"error": one line}.

    Whatever an `Exception` says is an answer. What ends a process is not, nor is a want of memory:
    the same call may pass where less runs beside it.
    """
    try:
        module, _, name = function.partition(":")
        value = getattr(importlib.import_module(module), name)(**kwargs)
        json.dumps(value, allow_nan=False)  # here, where the error can name the function
    except MemoryError:
        raise
    except Exception as error:
        traceback.print_exc()  # to the log
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        return {"error": f"{kind}{shorten_message(' '.join(str(error).split()))}"}
    return {"value": value}


def serve() -> None:
    """A worker's life: one call from stdin, one answer to stdout."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what the called code prints is no answer
        request = json.loads(_read_line())
        threading.Thread(target=_follow_parent, daemon=True).start()
        answer = call_function(request["function"], request["kwargs"])
        sys.stdout.flush()
        answers.write(json.dumps(answer, allow_nan=False).encode() + b"\n")


def _read_line() -> bytes:
    """A line of stdin, byte by byte at its end: Python's own buffer would hold a lock at exit."""
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(0, 1 << 16)
        if not block:
            raise SystemExit(1)  # the parent has gone before it asked
        line += block
    return line


def _follow_parent() -> None:
    """End this process when the parent has closed its end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(1)
