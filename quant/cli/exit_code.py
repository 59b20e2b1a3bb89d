"""Exit codes of the commands that judge: 0 passed, 1 failed, 2 could not run.

A script must be able to tell "this bundle is bad" from "nothing was judged", so every error that
would end another command with 1 ends these with 2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ...runtime.cli.main import UsageError, print_error
from ...runtime.terminal.interruption import was_received
from ...runtime.terminal.standard_streams import is_reader_gone

PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2


@contextmanager
def errors_exit_with_2(command: str) -> Iterator[None]:
    """Print what goes wrong in the block as one line on stderr, and exit with 2.

    Interruptions and usage errors are left to `runtime.cli.main`. VLMEDGE_DEBUG shows where an
    error came from.
    """
    try:
        yield
    except (UsageError, typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if was_received():  # a library has made an error of the interrupt
            raise KeyboardInterrupt from error
        if os.environ.get("VLMEDGE_DEBUG") or is_reader_gone(error):
            raise
        print_error(error, [command])
        raise typer.Exit(COULD_NOT_RUN) from error
