"""End in order on ctrl-C, a kill or a closed terminal, and say in one line what is kept.

Until a command enters its first block of work nothing has begun, and a signal ends it at once: an
exception in the middle of a library's import may be swallowed or end in a traceback. From then on a
signal becomes an exception, so that temporary files are removed on the way out. This module loads
nothing that takes time.
"""

from __future__ import annotations

# The part of `signal` without enumerations: loading those takes milliseconds, in which Python's own
# handler would answer a ctrl-C with a traceback
import _signal as signal  # pyright: ignore[reportMissingModuleSource, reportMissingImports]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Number -> the verb of the line; the exit code is the one that shells give to a signal
_VERBS: dict[int, str] = {
    getattr(signal, name): verb
    for name, verb in (
        ("SIGINT", "interrupted"),
        ("SIGTERM", "terminated"),
        ("SIGHUP", "ended with its terminal"),
    )
    if hasattr(signal, name)  # Windows has no SIGHUP
}
_SHOW_CURSOR = "\x1b[?25h"
NOTHING_BEGAN = "it had not begun, nothing was changed"
NOTHING_WRITTEN = "nothing was written"  # for commands that write no files


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to end."""


class _State:
    """The state of this process, which signals belong to as well."""

    program = "vlmedge"
    is_installed = False
    received: int | None = None  # the signal
    times = 0
    has_begun = False
    kept: str | None = None


def install(program: str) -> None:
    """Handle the signals from here on, except those that are ignored, as under nohup.

    Args:
        program: the beginning of the line: "vlmedge quantize".
    """
    _State.program, _State.is_installed = program, True
    for number in _VERBS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _handle)


def uninstall() -> None:
    """Let signals end the process silently: there is nothing left to say or to remove."""
    for number in _VERBS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


class interruptible:  # noqa: N801 - used as a block, as contextlib's are; contextlib takes time
    """A block of work; when it is interrupted, `tell` says what is kept and how to go on."""

    def __init__(self, tell: Callable[[], str]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        _State.has_begun = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The innermost block knows best. A library may have turned the interrupt into another error
        is_interrupt = kind is not None and issubclass(kind, KeyboardInterrupt)
        if is_interrupt or (kind is not None and was_received()):
            _State.kept = _State.kept or self._tell()


def begin() -> None:
    """Note that work begins which has no block of its own to say what is kept."""
    _State.has_begun = True


def was_received() -> bool:
    """Whether this process has been asked to end."""
    return _State.received is not None


def note_signal(number: int) -> KeyboardInterrupt:
    """Note a signal that another handler took in our place, and return what it has to raise."""
    if _State.is_installed:
        _State.received = number
    return Interrupted()


def describe() -> str:
    """The line that says what happened and what is kept."""
    number = signal.SIGINT if _State.received is None else _State.received
    verb = _VERBS[number]
    return f"{verb}; {_State.kept}" if _State.kept else verb


def take() -> tuple[str, int]:
    """Return the line and the exit code of the interruption that ended the work, and forget it."""
    number = signal.SIGINT if _State.received is None else _State.received
    text = describe()
    _State.received, _State.times, _State.kept = None, 0, None
    return text, 128 + number


def _handle(number: int, _: FrameType | None) -> None:
    _State.received = number
    _State.times += 1
    if _State.times == 1:
        if not _State.has_begun:
            _State.kept = NOTHING_BEGAN
            _leave(describe())
        raise Interrupted
    if _State.times > 2:
        _leave("ended at once; temporary files may be left")
    _write(f"{_State.program}: cleaning up; one more signal ends it at once\n")


def _leave(text: str) -> None:
    cursor = "\r\x1b[K" + _SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    _write(f"{cursor}{_State.program}: {text}\n")
    os._exit(128 + (_State.received or signal.SIGINT))


def _write(text: str) -> None:
    """Write to stderr's descriptor: the interrupted code may hold the lock of its buffer."""
    try:  # noqa: SIM105 - contextlib takes time
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:  # the terminal is gone
        pass
