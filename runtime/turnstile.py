"""Let one thread at a time use the model; one that would deadlock on itself gets a RuntimeError."""

from __future__ import annotations

import threading
from types import TracebackType


class Turnstile:
    """A lock that a thread can't take twice, and that another thread may give back."""

    def __init__(self) -> None:
        """Start free."""
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise RuntimeError(
                "this thread is still reading a stream of this model: read it to its end or close "
                "it before the next request"
            )
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._owner = None
        self._lock.release()
