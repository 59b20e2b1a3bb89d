"""Exact match of the sample on held-out pictures, task by task, through our own runtime.

    python scripts/eval_sample.py --bundle bundles/reader --num-examples 500

Exports the checkpoint first where the bundle is missing. The table goes to stdout; --json adds a
file with it and with every wrong answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sample.examples import ITEMS, Example
from sample.groups import FIRST_GROUP, GROUP_SIZE, pick_groups
from sample.tasks import TASKS, make_example

from vlmedge.export.exporter import export_checkpoint
from vlmedge.runtime import GenerationOptions, Model

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure."""

    bundle: Path
    checkpoint: Path
    num_examples: int
    tasks: tuple[str, ...]
    json: Path | None
    num_threads: int | None


def parse_args(argv: list[str] | None = None) -> Config:
    """Options -> Config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "reader")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "samples" / "reader")
    parser.add_argument("--num-examples", type=int, default=500, help="per task")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--json", type=Path, help="where to write the figures and the misses")
    parser.add_argument("--num-threads", type=int)
    options = vars(parser.parse_args(argv))
    return Config(**options | {"tasks": tuple(options["tasks"])})


def ask(model: Model, example: Example) -> str:
    """The model's greedy answer about one drawn thing."""
    options = GenerationOptions(max_new_tokens=16, do_sample=False)
    if example.is_clip:
        return model.answer(example.question, videos=[example.frames], options=options).text
    return model.answer(example.question, example.frames, options=options).text


def name_question(question: str) -> str:
    """The question with any item's name left open."""
    for item in ITEMS:
        question = question.replace(item, "{item}")
    return question


def measure_task(model: Model, task: str, num_examples: int) -> dict[str, object]:
    """Exact match over all examples and by question, and the misses."""
    tries, exact, misses = Counter(), Counter(), []
    for shape, group, size in pick_groups(task, num_examples, GROUP_SIZE, FIRST_GROUP):
        for place in range(size):
            example = make_example("held-out", shape, group, place)
            text, question = ask(model, example), name_question(example.question)
            tries[question] += 1
            exact[question] += text == example.answer
            if text != example.answer:
                misses.append(
                    {"question": example.question, "answer": example.answer, "read": text}
                )
    return {
        "exact": exact.total() / num_examples,
        "examples": num_examples,
        "by_question": {q: {"exact": exact[q] / tries[q], "examples": tries[q]} for q in tries},
        "misses": misses,
    }


def main() -> None:
    """Export if needed, measure, print."""
    config = parse_args()
    if not config.bundle.exists():
        config.bundle.parent.mkdir(parents=True, exist_ok=True)
        export_checkpoint(str(config.checkpoint), config.bundle)
    figures = {}
    with Model.load(config.bundle, providers="cpu", num_threads=config.num_threads) as model:
        print(f"{'task':<12}{'exact':>8}{'examples':>10}")
        for task in config.tasks:
            figures[task] = found = measure_task(model, task, config.num_examples)
            print(f"{task:<12}{found['exact']:>8.1%}{found['examples']:>10}", flush=True)
    if config.json:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"wrote {config.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
