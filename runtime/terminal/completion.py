"""Complete values in a shell with the words of our tables, read only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

PROVIDERS = ("cpu", "cuda", "tensorrt")


def complete_words(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completer for typer's `autocompletion`: of the words, those that start as what is typed.

    Args:
        find: called at each completion; must import nothing heavy.
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in find() if word.startswith(incomplete)]

    return complete


def complete_list(find: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The same for words with commas between them: what stands already is not offered again."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        words = [word for word in find() if word.startswith(last) and word not in given]
        return [f"{before}{comma}{word}" for word in words]

    return complete
