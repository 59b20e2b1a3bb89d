"""`vlmedge sweep`: the command line of sweeps; the work is in processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...runtime.cli.commands import check_threads
from ...runtime.terminal.console import make_progress, print_json, print_notice
from ...runtime.terminal.interruption import interruptible
from ...runtime.terminal.wrong_option import need_file, wrong_options_exit_with_2
from .kept_work import NOTHING_KEPT
from .options import tell_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sweep.units import Event, Pool


def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP.toml",
            help="TOML file of what to compare, as in the example.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Folder for bundles, results and tables; a sweep that was killed goes on in it.",
            show_default=False,
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes side by side, each with a model of its own in memory.",
            show_default="1; on Ray as many as there are cores for",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="CPU threads of each worker.",
            show_default="all cores by workers; on Ray 1",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Run on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT (extra: ray).",
            show_default="this machine",
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option("--tries", min=1, help="Attempts at a unit whose process is killed.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Compare recipes: quantize models by each of them and check what comes out.

    SWEEP.toml names them, its paths are relative to it:

    sources = ["reader-fp32"]  # float bundles, or checkpoints
    recipes = ["orin", "cpu", "mine.toml"]
    bundles = ["older-int8"]  # ready ones to judge beside them
    data.source = "held-out/data.jsonl"
    data.num_shards = 4  # parts that are checked side by side
    calibration.source = "calibration/data.jsonl"
    check.levels = ["embeddings", "logits", "texts", "tasks", "speed"]
    check.gate = "gate.toml"

    Exit codes: 0 everything is measured, whether it holds the gate or not; 1
    parts failed, and the table holds the bundles that have all of theirs.
    """
    import tomllib  # noqa: F401  Python 3.11 is said to be needed before a package is

    if ray is None:  # a cluster's machines may have more cores than this one
        check_threads(threads)
    with wrong_options_exit_with_2():
        need_file("SWEEP.toml", file)
    from ..files.bundle_target import check_apart
    from ..sweep.plan import read_sweep
    from ..sweep.run import run_sweep
    from ..sweep.schedule import make_schedule
    from ..sweep.table import make_json, print_sweep, write_sweep

    plan = read_sweep(file)
    for source in (*plan.sources.values(), *plan.bundles.values()):
        check_apart(out / "sweep.json", source)
    num_threads = threads or choose_threads(workers, on_ray=ray is not None)
    schedule = make_schedule(plan, out, num_threads)
    tell_data(schedule.data, "vlmedge sweep: ")
    num_units = len(schedule.units) + len(schedule.alone)
    kept: set[str] = set()
    pool = open_pool(out, workers, num_threads, ray)
    try:
        with (
            interruptible(lambda: describe_kept(len(kept), num_units, out)),
            make_progress(of_bytes=False) as bar,
        ):
            step = bar.add_task("starting", total=num_units)
            found = run_sweep(
                plan,
                schedule,
                out,
                pool,
                max_tries=tries,
                on_event=make_watcher(
                    lambda ended, name: bar.update(step, completed=ended, description=name), kept
                ),
            )
    finally:
        pool.close()
    write_sweep(out, found)
    if as_json:
        print_json(make_json(found))
    else:
        print_sweep(found)
    if found.failed:
        print_notice(
            f"vlmedge sweep: {len(found.failed)} of {num_units} units are not done; the same "
            "command tries them again"
        )
        raise typer.Exit(1)


def choose_threads(workers: int | None, *, on_ray: bool) -> int:
    """CPU threads of each worker, so that all together use the cores once."""
    from ...runtime.threads import count_cpus

    return 1 if on_ray else max(1, count_cpus() // (workers or 1))


def open_pool(out: Path, workers: int | None, num_threads: int, address: str | None) -> Pool:
    """Processes of this machine, or a Ray cluster.

    Raises:
        ModuleNotFoundError: ray is missing.
        ValueError: no cluster at the address.
    """
    if address is None:
        from ..sweep.process_pool import ProcessPool

        return ProcessPool(workers or 1, out.absolute() / "logs", num_threads=num_threads)
    from ..sweep.ray_pool import RayPool

    return RayPool(address, workers, cpus_per_call=num_threads)


def describe_kept(count: int, total: int, out: Path) -> str:
    """What an interrupted sweep has for the next run."""
    if not count:
        return NOTHING_KEPT
    verb = "is" if count == 1 else "are"
    return f"{count} of {total} units {verb} kept in {out}: the same command goes on from there"


def make_watcher(
    on_progress: Callable[[int, str], None], kept: set[str] | None = None
) -> Callable[[Event], None]:
    """What is told of each step: a bar of the units that ended, a line for what went wrong.

    `kept` is filled with the units whose results are on the disk.
    """
    ended: set[str] = set()

    def watch(event: Event) -> None:
        if event.kind in ("died", "failed", "skipped"):
            again = ", it is tried again" if event.kind == "died" else ""
            print_notice(f"vlmedge sweep: {event.key} {event.kind}: {event.text}{again}")
        if kept is not None and event.kind in ("kept", "done"):
            kept.add(event.key)
        if event.kind not in ("started", "died"):
            ended.add(event.key)
        on_progress(len(ended), event.key)

    return watch
