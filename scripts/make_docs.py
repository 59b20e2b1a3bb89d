"""Writes what the documents repeat of the code: options, a checkpoint's keys, the list of files.

Run it after a change of options, of a module's first docstring line, or of the tree; with --check
it writes nothing and exits with 1 where a document is stale (a test does that).
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import subprocess
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
FOLDERS = ("runtime", "export", "quant", "scripts", "docs", "samples", "tests")
TEXT_FILES = (".py", ".sh", ".md")
# Files whose first line says nothing, and folders told of as one
PURPOSES = {
    "scripts/gpu_check/": "The steps of the GPU check, each in a process of its own.",
    "scripts/sample/": "The sample reader's pictures, words and training, a file each.",
    "quant/report/page.css": "How a report looks: light, dark, narrow, on paper.",
    "quant/report/page.html.jinja": "The frame of a report: one file, no script, nothing from a network.",
    "quant/recipe/presets/": "The recipes that come with the package, a TOML file each.",
    "samples/reader/": "The sample checkpoint, in the layout of the hub.",
    "samples/pictures/": "Pictures and clips with questions and their answers.",
    "samples/jetson/": "One picture, a camera loop, a systemd unit and a Dockerfile for a board.",
    "tests/scripts/": "Tests of scripts that are more than a page.",
    "tests/runtime/": "Tests of the runtime, a file a module.",
    "tests/export/": "Tests of the exporter, a file a module.",
    "tests/quant/": "Tests of quantization and checks, a file a module.",
    "tests/parity/": "The same input through transformers and through a bundle.",
    "tests/cli/": "Tests of the commands, as a person calls them.",
    "tests/samples/": "Tests of the sample's pictures and words.",
    "tests/golden/": "Numbers of the references that tests compare with.",
}


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


def make_tree() -> str:
    """The README's list: one line a file, from the file itself."""
    names = [name for name in list_tracked() if name.partition("/")[0] in FOLDERS]
    rows = ["| file | what it is |", "|---|---|"]
    for folder in FOLDERS:
        found: dict[str, str] = {}
        for name in sorted(name for name in names if name.startswith(f"{folder}/")):
            whole = next((key for key in PURPOSES if name.startswith(key)), None)
            if whole:
                found[whole] = PURPOSES[whole]
            elif name.endswith(TEXT_FILES) and (purpose := read_purpose(ROOT / name)):
                found[name] = purpose
        rows += [f"| `{name}` | {purpose} |" for name, purpose in found.items()]
    return "\n".join(rows)


def list_tracked() -> list[str]:
    """Names of the files git knows and that are there."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def read_purpose(path: Path) -> str:
    """The first line of a module's docstring, of a script's comment, or a page's title."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    elif path.suffix == ".sh":
        line = next(row.lstrip("# ") for row in text.splitlines() if not row.startswith("#!"))
    else:
        line = text.partition("\n")[0].lstrip("# ")
    return line.replace("|", "\\|").strip()


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
        "README.md": fill("README.md", make_tree()),
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
