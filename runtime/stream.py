"""Read an answer piece by piece while it is generated."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from .answer import Answer
from .steps import Steps


class AnswerStream(Iterator[str]):
    """Iterate over it for the pieces of the text; close it to stop early.

    Reading raises a ValueError once the model was closed before the end.

    Attributes:
        answer: the whole answer once the last piece has been read, None before.
    """

    def __init__(self, steps: Steps) -> None:
        """Wrap one request's steps."""
        self.answer: Answer | None = None
        self._steps = steps

    def __next__(self) -> str:
        while True:
            try:
                (piece,) = next(self._steps)
            except StopIteration as end:
                if end.value:
                    (self.answer,) = end.value
                raise StopIteration from None
            if piece:
                return piece

    def read(self) -> Answer:
        """Read to the end and return the answer.

        Raises:
            ValueError: the stream or its model was closed before its end.
        """
        if self.answer is None:
            (self.answer,) = self._steps.finish()
        return self.answer

    def close(self) -> None:
        """Stop after the step in progress and give the model back; later reading ends at once."""
        self._steps.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
