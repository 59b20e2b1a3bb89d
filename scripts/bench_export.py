"""What an export costs beside a plain copy of the checkpoint: python scripts/bench_export.py DIR.

Every round copies the checkpoint with cp and exports it in each format, one after another, so that
a noisy minute hits all of them; the table holds medians. Peak RSS is the kernel's own maximum
(wait4), peak anonymous memory is sampled from /proc every 10 ms. An export ends with its files on
the disk (fsync), so a copy that is flushed too stands beside the plain one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.01
FORMATS = ("fp16", "int8", "int4", "jetpack-6.2", "jetpack-7.2", "jetpack-7.2+link")
LINKED = "+link"  # with --link-weights


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one command."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    peak_anonymous_mib: float
    written_gb: float


def measure(command: list[str], output: Path) -> Cost:
    """Run a command that writes `output`, and remove that."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    anonymous = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, read_anonymous_kib(process.pid))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    files = [path.stat() for path in output.rglob("*") if path.is_file()]
    written = sum(file.st_size for file in files if file.st_nlink == 1)  # links cost nothing
    shutil.rmtree(output)
    return Cost(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        anonymous / 1024,
        written / 1e9,
    )


def read_anonymous_kib(pid: int) -> int:
    """RssAnon of a running process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line), 0)


def make_commands(checkpoint: Path, output: Path, formats: list[str]) -> dict[str, list[str]]:
    """What is compared, by name; every command writes the folder `output`."""
    copy = f"cp -rL '{checkpoint}' '{output}'"
    exporter = f"{Path(sys.executable).parent}/vlmedge"
    commands = {
        "cp": ["sh", "-c", copy],
        "cp, flushed": ["sh", "-c", f"{copy} && sync '{output}'/*"],
    }
    for name in formats:
        commands[name] = [exporter, "export", str(checkpoint), str(output), *make_options(name)]
    return commands


def make_options(name: str) -> list[str]:
    """A format of weights, or a target of TensorRT: "int4", "jetpack-7.2", "jetpack-7.2+link"."""
    if "-" not in name:
        return ["--weights", name]
    options = ["--target", name.removesuffix(LINKED)]
    return [*options, "--link-weights"] if name.endswith(LINKED) else options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="from scripts/make_checkpoint.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--scratch", type=Path, help="where to write; default: beside it")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print the table."""
    args = parse_args()
    parent = args.scratch or args.checkpoint.absolute().parent
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        commands = make_commands(args.checkpoint, Path(scratch) / "output", args.formats)
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for i in range(args.rounds):
            for name, command in commands.items():
                os.sync()  # nobody pays for what the one before left unwritten
                print(f"round {i + 1} of {args.rounds}: {name}", file=sys.stderr)
                costs[name].append(measure(command, Path(scratch) / "output"))
    print_table(costs)


def print_table(costs: dict[str, list[Cost]]) -> None:
    """Medians as a Markdown table."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(cost, field) for cost in costs[name])

    base, flushed = median("cp", "wall_seconds"), median("cp, flushed", "wall_seconds")
    print("| | wall s | x cp | x cp, flushed | CPU s | peak RSS MiB | peak anonymous MiB | GB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in costs:
        wall = median(name, "wall_seconds")
        print(
            f"| {name} | {wall:.1f} | {wall / base:.2f} | {wall / flushed:.2f} "
            f"| {median(name, 'cpu_seconds'):.1f} | {median(name, 'peak_rss_mib'):.0f} "
            f"| {median(name, 'peak_anonymous_mib'):.0f} | {median(name, 'written_gb'):.2f} |"
        )


if __name__ == "__main__":
    main()
