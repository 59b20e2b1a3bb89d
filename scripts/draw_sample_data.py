"""Draw one split of the sample's tasks as a data set: OUT/data.jsonl and its pictures.

    python scripts/draw_sample_data.py bundles/calibration --split calibration --num-examples 32
    python scripts/draw_sample_data.py bundles/held-out --split held-out --num-examples 500

A line is what `vlmedge quantize --data` and `vlmedge check --data` read; a clip is a list of its
frames. Splits share no seed, so no picture. Held-out examples are those that
scripts/eval_sample.py asks about, in its order: the first N of each task. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sample.examples import Example
from sample.groups import FIRST_GROUP, GROUP_SIZE, pick_groups
from sample.tasks import TASKS, make_example

# split -> (examples of one grid, first group). To calibrate, every example has a grid of its own:
# the more sizes of picture, the better.
GROUPS = {"calibration": (1, 0), "held-out": (GROUP_SIZE, FIRST_GROUP)}


@dataclass(frozen=True, slots=True)
class Config:
    """What to draw."""

    out: Path
    split: str
    num_examples: int
    tasks: tuple[str, ...]


def parse_args(argv: list[str] | None = None) -> Config:
    """Options -> Config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--split", choices=list(GROUPS), required=True)
    parser.add_argument("--num-examples", type=int, required=True, help="per task")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = vars(parser.parse_args(argv))
    config = Config(**options | {"tasks": tuple(dict.fromkeys(options["tasks"]))})
    if config.num_examples < 1:
        parser.error(f"--num-examples is {config.num_examples}, needed at least 1")
    if config.out.exists():
        parser.error(f"{config.out} exists: name a new folder")
    return config


def write_example(folder: Path, example_id: str, example: Example) -> dict[str, object]:
    """Write the pictures of one example; its line."""
    stem = Path(example_id.replace(" ", "-"))  # "price tag/1000/3" -> price-tag/1000/3.png
    if example.is_clip:
        paths = [stem / f"{i}.png" for i in range(len(example.frames))]
    else:
        paths = [stem.with_suffix(".png")]
    (folder / paths[0]).parent.mkdir(parents=True, exist_ok=True)
    for path, frame in zip(paths, example.frames, strict=True):
        frame.save(folder / path)
    names = [path.as_posix() for path in paths]
    return {
        "id": example_id,
        "task": example.task,
        "metric": "exact_match",
        **({"video": names} if example.is_clip else {"image": names[0]}),
        "question": example.question,
        "answer": example.answer,
    }


def draw_split(folder: Path, config: Config) -> int:
    """Fill a folder; the number of examples."""
    group_size, first_group = GROUPS[config.split]
    lines = []
    for task in config.tasks:
        for shape, group, size in pick_groups(
            task, config.num_examples, group_size, first_group, split=config.split
        ):
            for place in range(size):
                example = make_example(config.split, shape, group, place)
                line = write_example(folder, f"{task}/{group}/{place}", example)
                lines.append(json.dumps(line) + "\n")
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` if the block ends without an error."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = f".{target.absolute().name}.partial-"
    folder = Path(tempfile.mkdtemp(prefix=partial, dir=target.absolute().parent))
    try:
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)  # mkdtemp's is 0700
        yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Draw and say how much."""
    config = parse_args()
    with new_folder(config.out) as folder:
        num_examples = draw_split(folder, config)
    print(f"wrote {config.out}/data.jsonl: {num_examples} examples", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
