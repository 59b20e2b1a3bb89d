"""Keep a command orderly when stdin, stdout or stderr is closed, full or without a reader.

| stream | state | the command |
|---|---|---|
| stdout, stderr | its reader has gone (`| head`) | ends quietly with 141, as by SIGPIPE |
| stdout | closed (`>&-`) | says so and ends with 1, before it does anything |
| stdout | full | ends with 1 in one line that names stdout |
| stderr | closed | works silently |
| stderr | full | works on; ends with 1 if it would have ended with 0 and had something to say |
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TextIO

READER_GONE = 141  # 128 + SIGPIPE, a shell's code for a command that the signal ended
STREAMS = ("stdout", "stderr")

P = ParamSpec("P")


def guarded(main: Callable[P, int]) -> Callable[P, int]:
    """Give a command's main function streams that behave as the module's table says."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        with _named_streams() as streams:
            if sys.stdout is None:
                _say("stdout is closed: redirect it, to /dev/null if nobody reads it")
                return 1
            try:
                code = main(*args, **kwargs)
            except OSError as error:
                if error.filename not in STREAMS:
                    raise
                code = 1  # main itself could not print its error
            except SystemExit:  # click and rich end a process whose reader has gone
                if not any(is_reader_gone(stream.error) for stream in streams):
                    raise
                code = READER_GONE
            for stream in streams:
                stream.flush()
            if any(is_reader_gone(stream.error) for stream in streams):
                return READER_GONE
            if code == 0 and (lost := [stream.error for stream in streams if stream.error]):
                _say(f"{lost[0].filename}: {lost[0].strerror}")
                return 1
            return code

    return run


def is_reader_gone(error: BaseException | None) -> bool:
    """Whether an error says that nobody reads stdout or stderr any more, which is not a fault."""
    return isinstance(error, BrokenPipeError) and error.filename in STREAMS


def read_text(max_chars: int) -> str:
    """All of stdin as text, for an argument that is "-".

    Raises:
        ValueError: stdin is closed, or holds more than `max_chars`.
    """
    text = _open_stdin().read(max_chars + 1)
    if len(text) > max_chars:
        raise ValueError(f"the text on stdin has over {max_chars} characters: shorten it")
    return text


def read_bytes(max_bytes: int) -> bytes:
    """All of stdin as bytes, for an argument that is "-".

    Raises:
        ValueError: stdin is closed, or holds more than `max_bytes`.
    """
    data = _open_stdin().buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"stdin holds more than {max_bytes} bytes, the most that is read from it")
    return data


def _open_stdin() -> TextIO:
    if sys.stdin is None:
        raise ValueError("stdin is closed, and - reads from it: give it a file or a pipe")
    return sys.stdin


class _Raw(io.FileIO):
    """A file descriptor whose first failed write is an error with the stream's name.

    Later writes go nowhere: Python flushes once more when it ends, and would complain.
    """

    def __init__(self, descriptor: int, stream_name: str) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.stream_name = stream_name
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write some of the data; None where the descriptor would block."""
        if self.error is not None:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, self.stream_name)
            if self.stream_name == "stdout" or is_reader_gone(self.error):
                raise self.error from None
            return memoryview(data).nbytes  # an error that can't be shown still has its exit code


class _Stream:
    """One of Python's standard streams, taken over until `restore`."""

    def __init__(self, name: str, original: TextIO) -> None:
        with suppress(OSError):
            original.flush()
        self._name = name
        self._original = original
        is_unbuffered = getattr(original, "write_through", False)  # PYTHONUNBUFFERED
        self._raw = _Raw(original.fileno(), name)
        self._text = io.TextIOWrapper(
            io.BufferedWriter(self._raw),
            encoding=original.encoding,
            errors=original.errors,
            line_buffering=name == "stderr" or original.isatty() or is_unbuffered,
        )
        setattr(sys, name, self._text)

    @property
    def error(self) -> OSError | None:
        """The error of the first failed write."""
        return self._raw.error

    def flush(self) -> None:
        """Write the rest; `error` says whether that worked."""
        with suppress(OSError):
            self._text.flush()
        with suppress(OSError):  # the part that the first flush could not write
            self._text.flush()

    def restore(self) -> None:
        """Put Python's own stream back in its place."""
        self.flush()
        setattr(sys, self._name, self._original)


@contextmanager
def _named_streams() -> Iterator[list[_Stream]]:
    """Take over the process's own streams; those that a test or a host put there stay."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _occupy()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as Python's
    streams = [
        _Stream(name, getattr(sys, name))
        for name in STREAMS
        if getattr(sys, name) is not None and _is_own(getattr(sys, name), name)
    ]
    try:
        yield streams
    finally:
        for stream in streams:
            stream.restore()


def _is_own(stream: TextIO, name: str) -> bool:
    """Whether a stream is the one that Python opened over a descriptor."""
    if stream is not getattr(sys, f"__{name}__"):
        return False
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True


def _occupy() -> None:
    """Open those of the descriptors 0 to 2 that are closed.

    The next file that is opened would get one of them, and a library's output would go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"vlmedge: {text}", file=sys.stderr, flush=True)
