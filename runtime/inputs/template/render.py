"""Compile and render a checkpoint's chat template, within limits whatever it does.

Templates see what transformers gives them: Jinja with trimmed blocks, loop controls, `generation`
blocks, `tojson`, `raise_exception` and `strftime_now`, in a sandbox that also limits what they
compute (`metering.py`).
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.parser
from jinja2 import nodes

from ...errors import BundleError, PromptError
from .budget import (
    MAX_FIELD_WIDTH,
    TemplateLimitError,
    check_int,
    get_budget,
    render_within,
)
from .metering import MeteredEnvironment

MAX_SOURCE_BYTES = 1 << 18  # the longest templates in use have some 30 kB


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template; nothing of it is run.

    Raises:
        BundleError: it is too long, has a syntax error, or uses a filter or test that is missing.
    """
    size = len(source.encode(errors="replace"))
    if size > MAX_SOURCE_BYTES:
        raise BundleError(
            f"the chat template does not compile: it has {size} bytes, over the limit of "
            f"{MAX_SOURCE_BYTES}"
        )
    try:
        environment = MeteredEnvironment(
            [_GenerationTag, jinja2.ext.loopcontrols],
            {"tojson": _to_json},
            {"raise_exception": _raise_exception, "strftime_now": _strftime_now},
        )
        return environment.from_string(source)
    except (Exception, RecursionError) as error:  # Python's compiler raises errors of its own
        raise BundleError(f"the chat template does not compile: {_describe(error)}") from error


def render_template(template: jinja2.Template, **variables: Any) -> str:
    """Render a compiled chat template.

    Raises:
        PromptError: in one line, for every error in the template and every limit it exceeds.
    """
    try:
        text = render_within(template, variables)
        text.encode()  # raises on half a surrogate pair, which no tokenizer takes
        return text
    except TemplateLimitError as error:
        raise PromptError(
            f"the chat template{_find_line(error)} asks for more than a prompt needs: {error}"
        ) from error
    except (Exception, RecursionError, MemoryError) as error:
        raise PromptError(
            f"the chat template{_find_line(error)} refuses these messages: {_describe(error)}"
        ) from error


def _describe(error: BaseException) -> str:
    """One line: the text of Jinja's and the template's errors; others also with their names."""
    text = " ".join(str(error).split())[:500]
    line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    if isinstance(error, jinja2.TemplateError) and text:
        return text + line
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _find_line(error: BaseException) -> str:
    """The template's line that raised the error, from the traceback, where Jinja puts it."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f", line {line},"


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks training targets in some templates, becomes its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes HTML, which a prompt must not."""
    check_int(indent, MAX_FIELD_WIDTH)
    for text in (indent, *(separators or ())):
        if isinstance(text, str):
            check_int(len(text), MAX_FIELD_WIDTH)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget = get_budget()
    return "".join([budget.made(piece) for piece in encoder.iterencode(value)])


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    check_int(len(pattern), MAX_FIELD_WIDTH)  # the system may take 256 times as much for the result
    return datetime.datetime.now().strftime(pattern)
