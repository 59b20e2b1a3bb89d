"""Start the program `vlmedge`: handle ctrl-C and show a line before anything large is loaded."""

from __future__ import annotations

import sys

try:
    from ..terminal import interruption
except KeyboardInterrupt:  # Python's own handler is there still
    sys.stderr.write("vlmedge: interrupted; it had not begun, nothing was changed\n")
    raise SystemExit(130) from None


def main() -> int:
    """Run the command line of this process; the exit code.

    From the first line on a signal ends the process with a line of ours, whatever it is in.
    """
    words = sys.argv[1:]
    command = words[0] if words and not words[0].startswith("-") else ""
    name = f"vlmedge {command}".strip()
    interruption.install(name if name.isprintable() else "vlmedge")
    from ..terminal import status_line

    if command and name.isprintable() and not _is_quick(words):
        status_line.show(f"{name}: starting")
    for stream in (sys.stdout, sys.stderr):  # a character that they lack is no reason to fail
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
    from .main import main as run_command_line

    code = run_command_line(words)
    interruption.uninstall()
    return code


def _is_quick(words: list[str]) -> bool:
    """Whether all that is asked for is a text."""
    return "--help" in words


if __name__ == "__main__":
    sys.exit(main())
