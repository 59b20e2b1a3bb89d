"""Write the pages that repeat what the code says: the commands' options and a checkpoint's keys.

Run it after a change of options or of key rules. With --check it writes nothing and exits with 1
where a page is stale; a test does that.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from vlmedge.export.checkpoint.keys.table import make_table
from vlmedge.runtime.cli.main import find_commands

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- made by scripts/make_docs.py -->", "<!-- end -->"


def make_cli_page() -> str:
    """docs/cli.md: every command with its arguments and options."""
    parts = [
        "# Command line",
        "",
        "Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the command "
        "failed (one line says why), 2 a wrong option (one line says which), 130 interrupted "
        "(143 by a plain kill, 129 with its terminal), with a line that says what is kept, "
        "141 the reader of the output has gone (as in `vlmedge run ... | head -c 1`; quietly). "
        "`VLMEDGE_DEBUG=1` shows the traceback of a failure.",
        "",
        "`vlmedge --install-completion` sets up completion of commands and options in the shell. "
        "With Optimum installed, `optimum-cli export vlmedge` takes what `vlmedge export` takes.",
    ]
    for name, entry in find_commands().items():
        if entry.module.startswith("vlmedge."):
            parts += ["", *describe_command(name, entry.load())]
    return "\n".join(parts) + "\n"


def describe_command(name: str, function: Callable[..., None]) -> Iterator[str]:
    """Heading, usage, what it does, and a table of what it takes."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    rows, words = [], []
    for parameter in parameters:
        kind, info = read_parameter(hints[parameter.name])
        if isinstance(info, ArgumentInfo):
            words.append(info.metavar or parameter.name.upper())
            label = words[-1]
        else:
            names = [info.default, *(info.param_decls or ())]  # inside Annotated both are names
            named = (name for name in names if isinstance(name, str) and name.startswith("--"))
            label = next(named, "--" + parameter.name.replace("_", "-"))
            label += f" {info.metavar or kind}" if kind else ""
        rows.append((label, info.help or "", describe_default(parameter.default, info)))
    summary = re.split(r"\n\s*(?:Args|Raises|Returns):", function.__doc__ or "")[0]
    yield f"## vlmedge {name}"
    yield ""
    yield f"`vlmedge {' '.join([name, *words, '[OPTIONS]'])}`"
    yield ""
    yield inspect.cleandoc(summary)
    yield ""
    yield "| | | default |"
    yield "|---|---|---|"
    for label, text, default in rows:
        name = label.replace("|", "\\|")  # which would end the cell, in code as well
        yield f"| `{name}` | {text} | {default} |".replace("  |", " |")


def read_parameter(hint: Any) -> tuple[str, ArgumentInfo | OptionInfo]:
    """The word for a value ('' for a flag) and typer's record of the parameter."""
    plain, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    info = next(extra for extra in extras if isinstance(extra, (ArgumentInfo, OptionInfo)))
    if get_origin(plain) in (Union, UnionType):
        plain = next(option for option in get_args(plain) if option is not type(None))
    if get_origin(plain) is list:
        (plain,) = get_args(plain)
    if get_origin(plain) is Literal:
        return "/".join(map(str, get_args(plain))), info
    words = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return words[plain], info


def describe_default(default: Any, info: ArgumentInfo | OptionInfo) -> str:
    """What holds when the option is not given."""
    if isinstance(info.show_default, str):
        return info.show_default
    if default is inspect.Parameter.empty:
        return "needed"
    return "" if default is None or isinstance(default, bool) else f"{default}"


def fill(name: str, made: str) -> str:
    """A document with what is made between its two marks."""
    before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(START)
    if not rest:
        sys.exit(f"{name} has no line {START}")
    return f"{before}{START}\n{made}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write them, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if stale")
    args = parser.parse_args()
    pages = {
        "docs/cli.md": make_cli_page(),
        "docs/checkpoints.md": fill("docs/checkpoints.md", make_table()),
    }
    stale = [
        name
        for name, text in pages.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != text
    ]
    if not args.check:
        for name in stale:
            (ROOT / name).write_text(pages[name], encoding="utf-8")
    elif stale:
        print(f"stale: {', '.join(stale)}; run python scripts/make_docs.py", file=sys.stderr)
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
