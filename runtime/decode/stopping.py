"""When an answer ends: end tokens, stop strings across token borders, the token limit."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string appears; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Start an answer; no stops pass everything on at once."""
        self._stops = tuple(stops)
        self._held = ""
        self.is_hit = False

    def push(self, piece: str) -> str:
        """Take a piece of the answer, return the text that is certain to be part of it."""
        if self.is_hit or not piece:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """The answer ended without a stop string: what was held back belongs to it."""
        held, self._held = self._held, ""
        return held


class StopTokens:
    """Looks for the token that completes a stop string, by the rule of transformers.

    The string may begin in the prompt, and special tokens count as they are spelled; its last byte
    must be of the new token, whose further text stays in the answer like the string itself.
    """

    def __init__(self, stops: Sequence[str], prompt: Sequence[bytes]) -> None:
        """Start an answer.

        Args:
            stops: none of them empty.
            prompt: the bytes of its last tokens; `num_tail` of them are looked at, at most.
        """
        self._stops = tuple(stop.encode("utf-8", "surrogatepass") for stop in stops)
        self._num_tail = self.count_tail(stops)
        self._tail = b"".join(prompt)[-self._num_tail :] if self._num_tail else b""

    @staticmethod
    def count_tail(stops: Sequence[str]) -> int:
        """Bytes before a new token that may belong to a stop string."""
        longest = max((len(stop.encode("utf-8", "surrogatepass")) for stop in stops), default=1)
        return longest - 1

    def push(self, token: bytes) -> bool:
        """Whether this token completes a stop string."""
        text = self._tail + token
        start = len(self._tail)
        is_hit = any(text.find(stop, max(0, start - len(stop) + 1)) >= 0 for stop in self._stops)
        self._tail = text[-self._num_tail :] if self._num_tail else b""
        return is_hit


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
