"""`vlmedge check`: the command line of the check.

Heavy modules are imported in the function: what is missing must end in exit code 2, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...runtime.cli.commands import Threads
from ...runtime.terminal import status_line
from ...runtime.terminal.completion import complete_list
from ...runtime.terminal.console import make_progress, print_json_text, print_notice
from ...runtime.terminal.interruption import NOTHING_WRITTEN, begin, interruptible
from ...runtime.terminal.wrong_option import need_file, wrong_options_exit_with_2
from ..check.plan import LEVELS, CheckPlan
from ..data.spec import check_data_spec
from .exit_code import FAILED, errors_exit_with_2
from .options import MediaRoot, tell_data

if TYPE_CHECKING:
    from ..data.examples import Example


def check(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle to judge.", show_default=False)
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="CHECKPOINT|BUNDLE",
            help="The reference: a float bundle, or a checkpoint for transformers (extra: verify).",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="What both are asked: a folder of pictures, DATA.jsonl, or a benchmark as "
            "LAYOUT:PATH.",
            show_default=False,
        ),
    ],
    gate: Annotated[
        Path | None,
        typer.Option(
            "--gate",
            metavar="FILE",
            help="TOML file of limits to hold; without one only values over float16's range fail.",
            show_default="none",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FOLDER",
            help="Write report.html, report.json and junit.xml to this folder.",
            show_default="none",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Use at most N examples.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing them.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="Use examples of this task only.", show_default="all tasks")
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out and count examples whose picture is broken."),
    ] = False,
    media_root: MediaRoot = None,
    levels: Annotated[
        list[str] | None,
        typer.Option(
            "--levels",
            metavar="NAMES",
            help=f"Compare only these, with commas between them: {', '.join(LEVELS)}.",
            show_default="all that can be compared",
            autocompletion=complete_list(lambda: LEVELS),
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    speed_runs: Annotated[int, typer.Option(min=1, help="Repetitions of each measurement.")] = 5,
    threads: Threads = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files in --report that are not vlmedge's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Say whether a bundle may ship: compare it with its reference, hold it to a gate.

    From settings to speed: end tokens, sampling, pixel budget, tokenizer and
    template; image embeddings per picture size; logits along the reference's
    answers; the answers that `vlmedge run` gives, each side by its own settings;
    task scores; and against a float bundle also time, memory and the error of
    every layer. Where a limit fails, layers are given back to a reference that
    is a bundle, to find the cause.

    A gate is a TOML file: tables are levels, keys are metrics with _min or _max:

    image_embeds.cosine_min = 0.999
    logits.top1_min = 0.98
    tasks.loss_max = 2.0  # points of 100
    tasks.non_inferior = true  # of the loss's whole 95 % interval
    tasks.min_examples = 50  # of each task
    speed.vision_max = 1.05  # not 5 % slower than the reference
    settings.allow = ["pixels.max_pixels"]  # may differ, nothing else

    A bundle that computes in float16 fails where one of its values is over 65504,
    which a device makes infinite, whatever the gate and without one.

    Exit codes: 0 every limit holds, or there is no gate; 1 a limit fails, or the
    data can't tell (UNDECIDED); 2 could not run: a bad gate, bad data, a missing
    bundle, no engine, NaN in an output.
    """
    with wrong_options_exit_with_2():
        plan = CheckPlan(
            levels=split_words(levels),
            max_new_tokens=max_new_tokens,
            num_speed_runs=speed_runs,
            num_threads=threads,
        )
        check_data_spec(data, media_root)
        if gate is not None:
            need_file("--gate", gate)
    with errors_exit_with_2("check"):
        import tomllib  # noqa: F401  Python 3.11 is said to be needed before a package is

        from ...runtime.bundle.manifest_file import read_manifest
        from ...runtime.errors import VlmedgeError
        from ..blame.levels import measure_blame
        from ..check.plan import check_gate, choose_levels
        from ..check.run import run_check
        from ..check.terminal import print_check
        from ..check.value_range import describe_near, describe_overflow
        from ..compare.reference import is_bundle
        from ..data.open_data import open_data
        from ..files.own_output import check_outputs
        from ..gate.gate import read_gate
        from ..gate.verdict import judge, judge_built_in
        from ..report.folder import REPORT_FILES, write_report
        from ..report.result_json import to_json

        limits = read_gate(gate) if gate else None
        if report:  # or fail before the long work
            begin()
            check_outputs(report, REPORT_FILES, force=force, apart_from=(bundle, against))
        examples = open_data(
            data, limit=limit, skip_bad=skip_bad, seed=seed, task=task, media_root=media_root
        )
        tell_data(examples, "vlmedge check: ")
        if limits:
            check_gate(limits, choose_levels(plan, examples, with_bundle=is_bundle(against)))
        told = "no report was written" if report else NOTHING_WRITTEN
        with interruptible(lambda: told), make_progress(of_bytes=False) as bar:
            step = bar.add_task("starting", total=None)
            result = run_check(
                bundle,
                against,
                examples,
                plan,
                lambda done, total, name: bar.update(
                    step, completed=done, total=total, description=name
                ),
            )
            verdict = judge(result, limits) if limits else judge_built_in(result)
            if verdict and limits and is_bundle(against):
                try:
                    verdict = measure_blame(
                        bundle,
                        Path(against),
                        examples.examples,
                        result,
                        verdict,
                        max_new_tokens=max_new_tokens,
                        num_threads=threads,
                        on_step=lambda name: bar.update(step, description=name),
                    )
                except (VlmedgeError, ValueError) as error:  # the verdict stands without it
                    print_notice(f"vlmedge check: who is to blame could not be measured: {error}")
        refused = None
        if report:
            status_line.show("vlmedge check: writing the report")
            try:  # hours have passed
                check_outputs(report, REPORT_FILES, force=force, apart_from=(bundle, against))
            except ValueError as error:
                refused = error  # told last: what was measured is printed all the same
            else:
                with interruptible(lambda: f"the report in {report} may be incomplete"):
                    write_report(
                        report,
                        result,
                        verdict,
                        coverage=read_manifest(bundle).coverage,
                        pictures=find_pictures(examples.examples),
                    )
        differing = [setting.name for setting in result.settings if not setting.is_equal]
        if differing and not limits:
            print_notice(
                "vlmedge check: settings that differ from the reference's, which any gate would "
                f"fail: {', '.join(differing)}"
            )
        for line in (describe_overflow(result.ranges), describe_near(result.ranges)):
            if line:
                print_notice(f"vlmedge check: {line}")
        if as_json:
            print_json_text(to_json(result, verdict))
        else:
            print_check(result, verdict)
        if refused:
            raise refused
    if verdict and not verdict.passed:
        raise typer.Exit(FAILED)


def find_pictures(examples: Sequence[Example]) -> Callable[[str], list[Any]]:
    """Example id -> its pictures, for the report."""
    from ...runtime.inputs.images import open_image
    from ..data.pictures import get_frames, list_parts

    by_id = {example.id: example for example in examples}

    def find(example: str) -> list[Any]:
        parts = list_parts(by_id[example])
        return [open_image(source) for part in parts for source in get_frames(part)]

    return find


def split_words(values: Sequence[str] | None) -> tuple[Any, ...] | None:
    """["a,b", "c"] -> ("a", "b", "c"); None stays None: everything."""
    if values is None:
        return None
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())
