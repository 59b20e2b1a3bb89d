"""Record what vlmedge makes of the sample, to prove that moved code still gives the same.

    python scripts/fingerprint.py record before.json --vlmedge OLD/.venv-dev/bin/vlmedge
    python scripts/fingerprint.py record after.json --vlmedge NEW/.venv-dev/bin/vlmedge
    python scripts/fingerprint.py compare before.json after.json

OLD and NEW are two checkouts, each with an environment that has the extras cpu, export and quant.
Both run the same commands on this checkout's samples/, so that only their code differs:

    bundles   samples/reader in every weight format, by every preset, and for every target in
              every type: the SHA-256 of each file, and each value of each manifest
    check     `vlmedge check --json` of every preset's bundle and every target's float32 bundle,
              by a gate that fails, so that layers are blamed
    plan      `vlmedge plan --json` for every device

Formats, presets, targets and devices are those that the command completes in a shell, so new ones
are covered without a change here. Every command has one thread. A command that refuses, such as
FP8 for a board without it, is recorded by its exit code.

compare reads the parts that both files hold; with --only they may hold different ones.

Exit codes of compare: 0 the same, 1 different (every difference is a line on stdout), 2 a wrong
option or a file that can't be compared. Exit codes of record: 0 written, 2 not written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fingerprints.file import (
    FingerprintError,
    compare,
    read_fingerprint,
    share_parts,
    write_fingerprint,
)
from fingerprints.record import record
from fingerprints.runs import PARTS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="run vlmedge on the sample and write what comes out")
    one.add_argument("out", type=Path, metavar="OUT.json", help="file to write or replace")
    one.add_argument(
        "--vlmedge",
        type=Path,
        metavar="PROGRAM",
        help="installed command to run (default: the one beside this Python)",
        default=Path(sys.executable).parent / "vlmedge",
    )
    one.add_argument("--only", choices=PARTS, help="record this part alone (default: all)")
    one.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        help="commands that run at a time, each with one thread (default: one for each core)",
    )
    two = commands.add_parser("compare", help="print every difference of two recorded files")
    two.add_argument("old", type=Path, metavar="A.json", help="recorded before the change")
    two.add_argument("new", type=Path, metavar="B.json", help="recorded after it")
    args = parser.parse_args(argv)
    if args.command == "record":
        if args.jobs < 1:
            one.error(f"--jobs is {args.jobs}, needed at least 1")
        if not args.vlmedge.is_file():
            one.error(f"--vlmedge {args.vlmedge} is not there: name ENVIRONMENT/bin/vlmedge")
        if not args.out.absolute().parent.is_dir():
            one.error(f"{args.out.parent} is not a folder")
    return args


def main(argv: list[str] | None = None) -> int:
    """Record or compare."""
    args = parse_args(argv)
    try:
        if args.command == "record":
            parts = [args.only] if args.only else PARTS
            write_fingerprint(args.out, record(args.vlmedge.absolute(), parts, args.jobs))
            return 0
        old, new = read_fingerprint(args.old), read_fingerprint(args.new)
        shared = share_parts(old, new)
        differences = list(compare(old, new))
    except (FingerprintError, OSError) as error:
        print(f"fingerprint.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fingerprint.py: interrupted, nothing is written", file=sys.stderr)
        return 130
    for line in differences:
        print(line)
    num_runs = sum(len(new.parts[part]) for part in shared)
    counts = f"commands compared: {num_runs}, differences: {len(differences)}"
    print(f"{', '.join(shared)}: {counts}", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
