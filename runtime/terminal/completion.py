"""Complete values in a shell with the words of our tables, read only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

PROVIDERS = ("cpu", "cuda", "tensorrt")


def complete_words(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completer for typer's `autocompletion` that offers the words with the typed beginning.

    Args:
        find: returns the words; called at each completion, so it must import nothing heavy.
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in find() if word.startswith(incomplete)]

    return complete


def complete_list(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The same for a list with commas, in which no word is offered twice."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        words = [word for word in find() if word.startswith(last) and word not in given]
        return [f"{before}{comma}{word}" for word in words]

    return complete
