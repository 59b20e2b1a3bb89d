"""`vlmedge COMMAND`: finds the installed commands, loads the one called, says an error in one line.

Commands are entry points of the group `vlmedge.commands`: a device with only the runtime has `run`,
and any distribution can add one. Listing them imports none, a command's one-line help is read from
its source. Results go to stdout, progress and errors to stderr.
Standard streams that are closed, full or without a reader: see standard_streams.py.

Exit codes: 0 done, 1 a command failed, 2 a wrong option, 130 interrupted (143 by a plain kill), 141
no reader any more.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import VlmedgeError
from ..shorten import shorten_message
from ..terminal import interruption, status_line
from ..terminal.standard_streams import guarded
from ..terminal.usage_text import describe_usage

GROUP = "vlmedge.commands"
DISTRIBUTION = "vlmedge"
INTERRUPTED = 130
# typer brings its own click since 0.2x and used click before: either way this is its UsageError
UsageError: Any = typer.BadParameter.__base__


class CommandGroup(TyperGroup):
    """Holds a stub with a help line for every command; the real one replaces it when called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command and import it."""
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub and load_command(find_commands()[str(name)]), rest


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run `vlmedge ARGV`, print any error as one line, and return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = make_group().main(args, prog_name=DISTRIBUTION, standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer makes it of a KeyboardInterrupt
            return _end_interrupted(args)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _end_interrupted(args)
    except BrokenPipeError:
        # the reader has gone: keep the interpreter's last flush from complaining about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        is_end_of_input = isinstance(error.__cause__, EOFError)  # which is no interruption
        if interruption.was_received() or (isinstance(error, typer.Abort) and not is_end_of_input):
            return _end_interrupted(args)
        if os.environ.get("VLMEDGE_DEBUG") and not isinstance(error, UsageError):
            raise
        print_error(error, args)
        return 2 if isinstance(error, UsageError) or is_too_old_python(error) else 1
    finally:
        status_line.clear()


def print_error(error: Exception, args: Sequence[str]) -> None:
    """One line on stderr."""
    from ..terminal.console import print_notice

    print_notice(describe(error, args))


def _end_interrupted(args: Sequence[str]) -> int:
    from ..terminal.console import print_notice

    text, code = interruption.take()
    with suppress(OSError):  # the terminal may be what has gone
        print_notice(f"{_name_command(args)}: {text}")
    return code


def make_group() -> Any:
    """The top command with a stub for each subcommand."""
    app = typer.Typer(
        cls=CommandGroup,
        help="Qwen2-VL from a Hugging Face checkpoint to an answer on an edge device.",
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    group: Any = typer.main.get_command(app)
    for name, entry in find_commands().items():
        group.commands[name] = TyperCommand(name, help=read_help(entry))
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(DISTRIBUTION, __version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,  # before "missing command"
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    pass


def find_commands() -> dict[str, EntryPoint]:
    """Command name -> entry point, sorted; the first of equal names on the path wins."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def load_command(entry: EntryPoint) -> Any:
    """Import one command's module and make a typer command of its function."""
    function: Callable[..., None] = entry.load()
    if not entry.module.startswith(f"{DISTRIBUTION}."):
        # Another distribution's prints without asking, and may write files outside of blocks
        status_line.clear()
        interruption.begin()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(entry.name, help=_summary(function.__doc__))(function)
    command: Any = typer.main.get_command(app)
    for param in command.params:
        if isinstance(param.show_default, str):  # typer would put words, and only them, in brackets
            param._get_default_string = functools.partial(_give, param.show_default)
    return command


def _give(text: str, **_: Any) -> str:
    return text


def read_help(entry: EntryPoint) -> str:
    """First paragraph of a command's docstring, read from its file without running it.

    Importing would load onnx for `export`, and fail where its extra is missing. Empty when there is
    no source to read.
    """
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return _summary(ast.get_docstring(node)).partition("\n\n")[0]
    return ""


def describe(error: Exception, args: Sequence[str]) -> str:
    """One line for the user: what went wrong, and what to do where that is known."""
    command = _name_command(args)
    if isinstance(error, UsageError):
        text = f"{describe_usage(error)} (see {command} --help)"
    elif is_too_old_python(error):
        return f"{command} needs Python 3.11 or newer; this is {platform.python_version()}"
    elif isinstance(error, ModuleNotFoundError) and (missing := find_extra(error, args)):
        return f"{command} needs {missing[0]}: pip install '{DISTRIBUTION}[{missing[1]}]'"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, (VlmedgeError, ValueError, OSError)):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"out of memory {error}"
    else:
        text = f"unexpected error {type(error).__name__}: {error}; set VLMEDGE_DEBUG=1 for more"
    return f"{command}: {shorten_message(' '.join(text.split()))}"


def is_too_old_python(error: Exception) -> bool:
    """Whether the TOML reader is missing, which came with Python 3.11."""
    return isinstance(error, ModuleNotFoundError) and error.name == "tomllib"


def _name_command(args: Sequence[str]) -> str:
    return f"{DISTRIBUTION} {args[0]}" if args and args[0] in find_commands() else DISTRIBUTION


def find_extra(error: ModuleNotFoundError, args: Sequence[str]) -> tuple[str, str] | None:
    """The distribution that would provide the missing module, and the extra of ours that has it.

    An extra named as the command goes before others that hold the same distribution.
    """
    wanted = (error.name or "").partition(".")[0].replace("_", "-").lower()
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    extras = []
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w.-]+)["']""", requirement)
        if name and extra and name[0].replace("_", "-").lower() == wanted:
            extras.append(extra[1])
    if not extras:
        return None
    return wanted, args[0] if args and args[0] in extras else extras[0]


def _summary(docstring: str | None) -> str:
    """The prose of a docstring, without its Args, Returns and Raises."""
    text = "\n".join(line.strip() for line in (docstring or "").strip().splitlines())
    return re.split(r"^(?:Args|Returns|Raises|Yields):", text, flags=re.MULTILINE)[0].strip()
