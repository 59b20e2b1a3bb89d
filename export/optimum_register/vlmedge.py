"""`optimum-cli export vlmedge CHECKPOINT BUNDLE`: our exporter where Optimum's users look for one.

Installed as `optimum.commands.register.vlmedge`: Optimum imports every module of that namespace
package and registers what its REGISTER_COMMANDS lists. It does so at every start, so nothing of
ours is imported before the command runs.
"""

# Optimum may be missing, and an editable install is invisible to pyright; `args` is set when run()
# is called, whatever Optimum's own annotation says.
# pyright: reportMissingImports=false, reportOptionalMemberAccess=false

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class VlmedgeExportCommand(BaseOptimumCLICommand):
    """Hands its arguments to `vlmedge export` as they are: one command line, two doors."""

    COMMAND = CommandInfo(
        name="vlmedge", help="Export a Qwen2-VL checkpoint to a vlmedge bundle, without torch."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Take everything that follows; `vlmedge export` checks it and has its own --help."""
        parser.prefix_chars = "\0"  # so that options, too, are arguments to hand on
        parser.add_argument("arguments", nargs="*")

    def run(self) -> None:
        """Run `vlmedge export` in this process and exit with its code."""
        from vlmedge.runtime.cli.main import main

        raise SystemExit(main(["export", *self.args.arguments]))


REGISTER_COMMANDS = [(VlmedgeExportCommand, ExportCommand)]
