"""The errors that a caller may want to tell apart; every other one is a ValueError of the call."""

from .shorten import shorten_message


class VlmedgeError(Exception):
    """Base of the errors below: the command line prints them as one line and exits with 1."""

    def __init__(self, message: object = "", *args: object) -> None:
        """Keep a message that can be read, whatever names a file or a caller has put into it."""
        super().__init__(shorten_message(str(message)), *args)


class BundleError(VlmedgeError, ValueError):
    """A bundle that is missing, damaged or of another schema, flavor or family."""


class ImageError(VlmedgeError, ValueError):
    """Bytes that are no picture, a broken picture, or one beyond the safety limits."""


class PromptError(VlmedgeError, ValueError):
    """Messages that don't fit the chat template, or placeholders that don't fit the pictures."""


class ContextLengthError(VlmedgeError, ValueError):
    """Prompt and answer together exceed what the model or the cache can hold."""


class BackendError(VlmedgeError, RuntimeError):
    """An execution backend is missing or refused a graph."""
