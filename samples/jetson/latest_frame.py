"""Frames as fast as a camera gives them -> the newest one, when somebody has time for it.

A queue between a camera and a slow model only adds delay: what is answered would be ever older.
So there is one place: a new frame replaces the one that waits, and what nobody took is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OpenSource = Callable[[], Iterable[NDArray[np.uint8]]]
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between attempts to open a camera again


class CameraLostError(Exception):
    """A camera that was unplugged, is busy, or gives no more pictures."""


@dataclass(frozen=True)
class Frame:
    """One picture of a camera.

    Attributes:
        pixels: uint8[H, W, 3], RGB.
        number: of the frame since the start, from 1 on.
        time: when it came, by time.monotonic().
    """

    pixels: NDArray[np.uint8]
    number: int
    time: float


class LatestFrame:
    """The one place between the thread that captures and the one that answers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._is_closed = False
        self._num_frames = 0
        self._num_dropped = 0

    def put(self, pixels: NDArray[np.uint8]) -> None:
        """A new frame; one that waits is dropped."""
        with self._changed:
            self._num_frames += 1
            self._num_dropped += self._frame is not None
            self._frame = Frame(pixels, self._num_frames, time.monotonic())
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """The newest frame, each only once; None where none came in time, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._is_closed, timeout_s)
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        """No more frames will come; whoever waits is let go. One that is there can be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether nothing is there and nothing will come."""
        with self._changed:
            return self._is_closed and self._frame is None

    @property
    def num_dropped(self) -> int:
        """Frames that nobody took."""
        with self._changed:
            return self._num_dropped


class Capture(threading.Thread):
    """Puts frames until it is stopped or the source ends; a lost camera is opened again."""

    def __init__(
        self,
        open_source: OpenSource,
        latest: LatestFrame,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        """Prepare; `start` begins.

        Args:
            open_source: opens the camera; its frames end where a file ends, a camera's raise
                CameraLostError.
            latest: where frames go.
            stop: ends the thread after the frame at hand.
            say: takes a line for a person.
        """
        # A read that hangs in a driver must not keep the program from ending
        super().__init__(name="capture", daemon=True)
        self._open_source = open_source
        self._latest = latest
        self._stop_event = stop
        self._say = say
        self.last_sign = time.monotonic()  # of life: a frame, or an attempt to get one
        self.error: BaseException | None = None  # that ended it

    def run(self) -> None:
        """The thread's work."""
        try:
            self._capture()
        except Exception as error:  # told by whoever waits for frames
            self.error = error
        finally:
            self._latest.close()

    def _capture(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stop_event.is_set():
            self.last_sign = time.monotonic()
            try:
                for pixels in self._open_source():
                    if self._stop_event.is_set():
                        return
                    self._latest.put(pixels)
                    self.last_sign = time.monotonic()
                    pause_s = FIRST_PAUSE_S
                return
            except CameraLostError as error:
                self._say(f"{error}; next attempt in {pause_s:.0f} s")
                self._stop_event.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
