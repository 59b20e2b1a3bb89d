"""Receive TensorRT's log and progress while it builds.

C++ lies between a callback and our caller, and no exception may cross it, Ctrl-C's neither: it is
kept, TensorRT is told to stop, and the caller raises it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...runtime.terminal.interruption import note_signal
from .build_progress import PhaseTracker
from .messages import Message

# TensorRT holds on to the first logger it got, for as long as the process lives.
_LOGGERS: list[Any] = []


class Log:
    """Where TensorRT's warnings and errors go, and an exception that a callback met."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.interrupt: BaseException | None = None

    def start(self) -> None:
        """Forget what was said of the graph before."""
        self.messages.clear()
        self.interrupt = None

    def add(self, severity: str, text: str) -> None:
        """Keep a message if it matters: most are verbose."""
        level = severity.rpartition(".")[2]
        if level in ("ERROR", "INTERNAL_ERROR"):
            self.messages.append(Message("error", text))
        elif level == "WARNING":
            self.messages.append(Message("warning", text))


@contextmanager
def deferred_interrupt(log: Log) -> Iterator[None]:
    """Within it the first Ctrl-C or kill is kept in the log; the second ends the process at once.

    Python would raise it in whichever callback runs next, before any `try` of that callback.
    """
    before: dict[signal.Signals, Any] = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    on_kill = signal.getsignal(signal.SIGTERM)
    if callable(on_kill):  # else a kill ends the process at once, here as anywhere
        before[signal.SIGTERM] = on_kill
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield  # only the main thread gets signals, and only Python's handlers can be put back
        return

    def keep(number: int, _: object) -> None:
        log.interrupt = note_signal(number)
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_logger(module: Any, log: Log) -> Any:
    """An ILogger that fills the log."""

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            try:
                log.add(str(severity), msg)
            except BaseException as error:
                log.interrupt = error

    logger = Logger()
    _LOGGERS.append(logger)
    return logger


def make_monitor(module: Any, tracker: PhaseTracker, log: Log) -> Any:
    """An IProgressMonitor that tells the tracker; False from it makes TensorRT stop at once."""

    def attempt(call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as error:
            log.interrupt = error

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            attempt(tracker.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            attempt(tracker.step, phase_name, step)
            return log.interrupt is None

        def phase_finish(self, phase_name: str) -> None:
            attempt(tracker.finish, phase_name)

    return Monitor()
