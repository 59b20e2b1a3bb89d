"""The command line: `parse_args`, then the steps, then the report."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .config import CONFIG_NAME, DEFAULT_PACK, DEFAULT_WORK, Config
from .importable import make_environment
from .pack import PACK_NAME, find_missing, read_pack
from .plan import Step, choose_steps, list_steps
from .precisions import PRECISIONS
from .record import read_record
from .runner import run_steps

REPORT_NAME = "gpu-check"
# TensorRT-RTX 1.7.1 fails on decoders built for prompts of 2 to 64 tokens ("Graph contains more
# than one op named attention_mask.1_iota").
LEAST_PROMPT = 65
DESCRIPTION = """\
Check the engines of vlmedge build on a GPU machine without network: whether TensorRT-RTX runs on
this GPU, whether its answers are ONNX Runtime's, how fast it is beside torch and beside what the
GPU can do. Goes on where the last call ended; prints Markdown, writes it and JSON to WORK.
"""
# Steps that came to one of these don't run again by themselves.
SETTLED = ("ok", "failed", "timeout")
# What can be done while a part of the pack is still to be carried.
WITHOUT_PACK = ("machine", "ceilings", "checkpoint", "torch")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the command.

    Attributes:
        config: of the check.
        minutes: this call may take.
        only: steps, or beginnings of their names.
        again: run though they have a result.
        retry: run again what failed or ran out of time.
        fresh: forget everything first.
        do_list: name the steps, run none.
        out: folder for copies of the report; None: none.
    """

    config: Config
    minutes: float
    only: tuple[str, ...]
    again: tuple[str, ...]
    retry: bool
    fresh: bool
    do_list: bool
    out: Path | None


def parse_args(argv: list[str] | None = None) -> Call:
    """Options -> Call; a wrong one ends with exit code 2."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=DEFAULT_WORK, help="folder for everything that is made")
    add("--pack", type=Path, default=DEFAULT_PACK, help="made by scripts/pack_tensorrt_rtx.py")
    add("--minutes", type=float, default=9.5, help="this call ends after so many")
    add("--steps", nargs="+", default=(), metavar="NAME", help="only these; 'sample' is all of it")
    add("--again", nargs="+", default=(), metavar="NAME", help="these though they have a result")
    add("--retry", action="store_true", help="again what failed or ran out of time")
    add("--fresh", action="store_true", help="forget all results first")
    add("--list", action="store_true", help="name the steps and what they came to; run none")
    add("--dry-run", action="store_true", help="on a CPU: everything that needs no GPU, tiny")
    add("--out", type=Path, help="folder that gets copies of the report")
    add("--size", default=None, help="of the timed checkpoint; 2b, in a dry run tiny")
    add("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    add("--sides", nargs="+", type=int, default=None, help="of pictures; 448 and 1092 pixels")
    add("--prompt-tokens", type=int, default=512, help="of one prefill")
    add("--context", type=int, default=2048, help="tokens of the cache, fixed by the graph")
    add("--num-runs", type=int, default=20, help="of each figure")
    args = parser.parse_args(argv)
    small = args.dry_run
    config = Config(
        work=args.work.absolute(),
        pack=args.pack.absolute(),
        size=args.size or ("tiny" if small else "2b"),
        precisions=tuple(dict.fromkeys(args.precisions)),
        dry_run=args.dry_run,
        sides=tuple(args.sides or ((112,) if small else (448, 1092))),
        prompt_tokens=args.prompt_tokens,
        context=args.context,
        num_runs=args.num_runs,
    )
    if problem := find_problem(config, args.minutes):
        parser.error(problem)
    return Call(
        config=config,
        minutes=args.minutes,
        only=tuple(args.steps),
        again=tuple(args.again),
        retry=args.retry,
        fresh=args.fresh,
        do_list=args.list,
        out=args.out,
    )


def find_problem(config: Config, minutes: float) -> str | None:
    """What is wrong with the options, in one line; None: nothing."""
    if not 0 < minutes <= 24 * 60:
        return f"--minutes is {minutes:g}, needed more than 0 and at most a day"
    for name in config.precisions:
        reference = PRECISIONS[name].reference
        if reference not in config.precisions:
            return f"--precisions has {name}, which is compared with {reference}: add that"
    if wrong := [side for side in config.sides if side < 56 or side % 28]:
        return f"--sides has {wrong[0]}, needed multiples of 28 from 56 on"
    if config.num_runs < 1:
        return f"--num-runs is {config.num_runs}, needed 1 or more"
    if config.prompt_tokens < LEAST_PROMPT:
        return f"--prompt-tokens is {config.prompt_tokens}, needed {LEAST_PROMPT} or more"
    if config.prompt_tokens + 64 > config.context:
        return (
            f"--context is {config.context}, needed 64 more than --prompt-tokens "
            f"({config.prompt_tokens})"
        )
    return None


def main(argv: list[str] | None = None) -> int:
    """Run; 0: every step that could run is ok, 1: some are not, or there was no time for them."""
    start = time.monotonic()
    call = parse_args(argv)
    config = call.config
    try:
        check_pack(call)
        settle_work(call)
        steps = list_steps(config)
        wanted = choose_wanted(call, steps)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    if call.do_list:
        for step in steps:
            record = read_record(config.work, step.name)
            print(f"{step.name:28} {record.status if record else 'not run'}")
        return 0
    environment = make_environment(config.work, config.pack, tell)
    left = run_steps(config, wanted, environment, start + 60 * call.minutes, tell)
    if left:
        tell(f"no time was left for {', '.join(left)}: call again to go on")
    return write_report(call, steps, environment)


def check_pack(call: Call) -> None:
    """See that the pack is whole before anything fails for want of it; steps may be named anyway.

    Raises:
        ValueError: it is not.
    """
    folder = call.config.pack
    if call.only or call.do_list or not (folder / PACK_NAME).is_file():
        return
    if missing := find_missing(folder, read_pack(folder)):
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: carry it here, or name --steps that need no "
            f"TensorRT: {' '.join(WITHOUT_PACK)}"
        )


def settle_work(call: Call) -> None:
    """Make the work folder, and see that what is in it was made with the same settings.

    Raises:
        ValueError: it was not.
    """
    work = call.config.work
    path = work / CONFIG_NAME
    if call.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not is_same_check(path.read_text(encoding="utf-8"), call.config):
        raise ValueError(f"{work} holds a check with other settings: name another, or --fresh")
    path.write_text(call.config.to_json(), encoding="utf-8")


def is_same_check(text: str, config: Config) -> bool:
    """Whether results may be kept: all but where the pack lies is as it was."""
    try:
        return json.loads(text) | {"pack": ""} == json.loads(config.to_json()) | {"pack": ""}
    except (ValueError, TypeError):
        return False


def choose_wanted(call: Call, steps: list[Step]) -> list[Step]:
    """The steps of this call.

    Raises:
        ValueError: a name that no step has.
    """
    records = {step.name: read_record(call.config.work, step.name) for step in steps}
    settled = ("ok",) if call.retry else SETTLED
    done = {name for name, record in records.items() if record and record.status in settled}
    return choose_steps(steps, call.only, done, call.again)


def write_report(call: Call, steps: list[Step], environment: dict[str, str]) -> int:
    """Markdown on stdout, both forms in the work folder."""
    # vlmedge can be imported from here on, as the steps import it.
    sys.path[:0] = environment["PYTHONPATH"].split(":")
    from .report import make_json, make_markdown

    config = call.config
    text = make_markdown(config, steps)
    content = json.dumps(make_json(config, steps), indent=1) + "\n"
    for folder in (config.work, *([call.out] if call.out else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{REPORT_NAME}.md").write_text(text, encoding="utf-8")
        (folder / f"{REPORT_NAME}.json").write_text(content, encoding="utf-8")
    print(text, end="")
    records = [read_record(config.work, step.name) for step in steps]
    is_good = all(record and record.status in ("ok", "skipped") for record in records)
    return 0 if is_good else 1


def tell(text: str) -> None:
    """Progress."""
    print(f"gpu_check: {text}", file=sys.stderr, flush=True)
