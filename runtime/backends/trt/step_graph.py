"""Record repeated work as a CUDA graph: one launch instead of hundreds.

Work is put on the stream as it is the first time, as TensorRT asks: it puts off some of its own
until then. The second time it is recorded, from then on the recording is launched.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Hashable

from ...errors import BackendError
from .driver import Driver

# TensorRT-RTX says no while it still compiles kernels for new shapes.
_MAX_REFUSALS = 4


class GraphPermit:
    """Whether work is recorded at all; where CUDA or TensorRT refuse, it is said once.

    Attributes:
        notices: why not, a line each.
    """

    def __init__(self) -> None:
        """Recording is allowed until it fails."""
        self.is_granted = True
        self.notices: list[str] = []
        self._num_refusals = 0  # in a row

    def note(self, can_capture: bool) -> None:
        """Count TensorRT's refusals; after some in a row it is asked no more."""
        self._num_refusals = 0 if can_capture else self._num_refusals + 1
        if self._num_refusals == _MAX_REFUSALS:
            self.revoke("TensorRT says that its work can't be recorded")

    def revoke(self, reason: str) -> None:
        """Never record again."""
        self.is_granted = False
        self.notices.append(f"decoding runs without a CUDA graph, slower: {reason}")


class StepGraph:
    """One piece of work, recorded when it comes again with nothing changed."""

    def __init__(self, driver: Driver, stream: int, permit: GraphPermit) -> None:
        """Nothing is recorded yet."""
        self._driver = driver
        self._stream = stream
        self._permit = permit
        self._key: Hashable = None
        self._graph: int | None = None
        self._destroy: weakref.finalize[[int], StepGraph] | None = None

    def run(
        self,
        make_key: Callable[[], Hashable],
        enqueue: Callable[[], None],
        can_capture: Callable[[], bool],
    ) -> None:
        """Put the work on the stream.

        Args:
            make_key: says what the work depends on: a recording is good for one key.
            enqueue: puts it there piece by piece.
            can_capture: whether that may be recorded, asked when it has run once.
        """
        is_same = self._key is not None and self._key == make_key()
        if is_same and self._graph is not None:
            self._driver.launch(self._graph, self._stream)
            return
        if is_same and self._permit.is_granted and self._record(enqueue, can_capture):
            return
        self.free()
        enqueue()
        self._key = make_key()

    def free(self) -> None:
        """Give the recording back, after its last run."""
        if self._destroy is not None:
            self._driver.synchronize(self._stream)
            self._destroy()
        self._key = self._graph = self._destroy = None

    def _record(self, enqueue: Callable[[], None], can_capture: Callable[[], bool]) -> bool:
        """Record and launch; False: nothing has run."""
        is_allowed = can_capture()
        self._permit.note(is_allowed)
        if not is_allowed:
            return False
        is_collecting = gc.isenabled()
        gc.disable()  # it may free memory of the device, which ends a recording
        try:
            self._driver.begin_capture(self._stream)
            try:
                enqueue()
            except BaseException:
                self._driver.abandon_capture(self._stream)
                raise
            graph = self._driver.end_capture(self._stream)
        except BackendError as error:
            self._permit.revoke(str(error))
            return False
        finally:
            if is_collecting:
                gc.enable()
        self._graph = graph
        self._destroy = weakref.finalize(self, self._driver.destroy_graph, graph)
        self._destroy.atexit = False
        self._driver.launch(graph, self._stream)
        return True
