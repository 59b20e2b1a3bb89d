"""Take a job's steps one by one, one thread at a time, or end it between two of them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Literal

from .answer import Answer

# Yields after each step the new text of every sequence, returns their answers.
StepGenerator = Generator[list[str], None, list[Answer]]


class Steps(Iterator[list[str]]):
    """Iterate over it for the new text of every sequence after each step.

    Attributes:
        is_run_to_end: a thread is taking all steps: whoever closes the model waits for the answer.
    """

    def __init__(self) -> None:
        """Without a generator, which needs to know its `Steps`: `begin` gives it."""
        self.is_run_to_end = False
        self._generator: StepGenerator | None = None
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread that is in a step
        self._ending: Literal["closed", "cut off"] | None = None
        self._is_cut_off = False

    def begin(self, generator: StepGenerator) -> None:
        """Take these steps; nothing is computed before the first `next`."""
        self._generator = generator

    @property
    def is_mine(self) -> bool:
        """Whether this thread is in a step right now, as a `cancel` function is."""
        return self._owner == threading.get_ident()

    def __next__(self) -> list[str]:
        """Compute a step.

        Raises:
            StopIteration: there are no more; its value are the answers, None after `close`.
            ValueError: the model was closed before the end.
        """
        with self._step() as generator:
            self._end(generator)
            if self._is_cut_off:
                raise ValueError(
                    "the model was closed before this stream's end: load it again and ask again"
                )
            try:
                return next(generator)
            except StopIteration as end:
                stop = end
        raise stop

    def finish(self) -> list[Answer]:
        """Compute the rest, without looking at the pieces.

        Raises:
            ValueError: the model was closed, or the steps were closed from elsewhere.
        """
        self.is_run_to_end = True
        try:
            while True:
                try:
                    next(self)
                except StopIteration as end:
                    if end.value is None:
                        raise ValueError(
                            "the stream was closed before its end: it has no answer"
                        ) from None
                    return end.value
        except BaseException:  # an interrupt between two steps: nobody would take the others
            self.close()
            raise
        finally:
            self.is_run_to_end = False

    def close(self) -> None:
        """End here, after the step in progress, and give the model back."""
        self._close("closed")

    def cut_off(self) -> None:
        """Like `close`, but a later `next` is an error: for the model, which goes away."""
        self._close("cut off")

    def _close(self, ending: Literal["closed", "cut off"]) -> None:
        # First, so that a thread which takes step after step ends even if it has the lock again
        if not self.is_mine:
            self._ending = ending
        with self._step() as generator:
            self._end(generator)

    def _end(self, generator: StepGenerator) -> None:
        """Do what was asked for; a generator that is at its end stays as it is."""
        if self._ending and inspect.getgeneratorstate(generator) != inspect.GEN_CLOSED:
            self._is_cut_off = self._ending == "cut off"
            generator.close()

    @contextmanager
    def _step(self) -> Iterator[StepGenerator]:
        if self.is_mine:
            raise RuntimeError(
                "a stream can't be read or closed from its own cancel function: return True there"
            )
        assert self._generator is not None
        with self._lock:
            try:
                self._owner = threading.get_ident()
                yield self._generator
            finally:
                self._owner = None
