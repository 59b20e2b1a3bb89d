"""Open what `--data` names as a checked set of examples.

| `--data` | is |
|---|---|
| `PICTURES/` | a folder of pictures, each with a general question: enough to calibrate |
| `DATA.jsonl` | questions, pictures and answers, see `jsonl.py` |
| `QUESTIONS.json` | the same as one JSON list |
| `FOLDER/` with `data.jsonl` or `questions.json` in it | that file |
| `LAYOUT:PATH` or `LAYOUT:OWNER/NAME` | a benchmark as Hugging Face has it, see `layouts` |
| `easy-vqa`, `easy-vqa:train` | the files of the PyPI package easy-vqa |

Order, choice and hash depend on the content alone, not on the machine. There is no random data.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .easy_vqa import read_easy_vqa
from .examples import DataSet
from .folder import read_folder
from .hub import find_files
from .jsonl import read_json_list, read_jsonl
from .layouts import LAYOUTS
from .listing import Listing
from .mvbench import read_mvbench
from .parquet import read_parquet
from .pictures import settle
from .spec import check_data_spec

LISTS = ("data.jsonl", "questions.json")  # what makes a folder more than its pictures


def open_data(
    spec: str,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    task: str | None = None,
    media_root: Path | None = None,
) -> DataSet:
    """Read, choose and check examples.

    Args:
        spec: see the module's table.
        limit: take so many, by `seed`; None: all. A larger limit keeps what a smaller one took.
        skip_bad: leave out (and count) examples whose picture is missing or broken.
        seed: of the choice.
        task: of this task only.
        media_root: folder that the paths in a .jsonl or .json file are relative to; None: its own.

    Raises:
        ValueError: nothing there, malformed or empty; names the file and the line.
    """
    try:
        return _open(spec, limit, skip_bad, seed, task, media_root)
    except ValueError as error:  # names and keys of others' files can hold a line's end
        raise ValueError(re.sub(r"[\r\n]+", " ", str(error))) from error


def _open(
    spec: str,
    limit: int | None,
    skip_bad: bool,
    seed: int,
    task: str | None,
    media_root: Path | None,
) -> DataSet:
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, needed at least 1 example")
    listing = _read(spec, media_root)
    chosen = _choose(listing, limit, seed, task)
    examples = listing.load(chosen)
    places = [listing.entries[index].where for index in chosen]
    settled = settle(examples, places, skip_bad=skip_bad)
    if not settled.examples:
        first = next(iter(settled.skipped.values()))
        raise ValueError(
            f"none of the {len(examples)} examples of {listing.name} can be used, the first "
            f"because {first}"
        )
    return DataSet(
        listing.name,
        settled.sha256,
        settled.examples,
        settled.skipped,
        settled.stamp,
        listing.notices,
    )


def _read(spec: str, media_root: Path | None) -> Listing:
    check_data_spec(spec, media_root)
    path = Path(spec)
    if path.is_dir():
        name = next((name for name in LISTS if (path / name).exists()), None)
        if name is None:
            return read_folder(path)
        path = path / name
    if path.suffix == ".jsonl":
        return read_jsonl(path, media_root)
    if path.suffix == ".json":
        return read_json_list(path, media_root)
    if media_root is not None:
        raise ValueError(f"{spec} names its own pictures: a media root is for .jsonl and .json")
    return _read_benchmark(spec)


def _read_benchmark(spec: str) -> Listing:
    """LAYOUT:SOURCE."""
    layout, colon, source = spec.partition(":")
    if layout == "easy-vqa" and (source or not colon):
        return read_easy_vqa(source or "test")
    if not colon or not source:
        raise ValueError(f"there is no {spec}: give a folder of pictures or a .jsonl file")
    if layout == "mvbench":
        return read_mvbench(source)
    if layout not in LAYOUTS:
        known = ", ".join((*LAYOUTS, "mvbench", "easy-vqa"))
        raise ValueError(f"there is no {spec}, and no layout {layout!r}: known are {known}")
    found = find_files(layout, source, LAYOUTS[layout].files)
    return read_parquet(layout, LAYOUTS[layout], found)


def _choose(listing: Listing, limit: int | None, seed: int, task: str | None) -> list[int]:
    """Indices in the source's order."""
    found = [i for i, entry in enumerate(listing.entries) if task is None or entry.task == task]
    if not found:
        tasks = sorted({entry.task for entry in listing.entries})
        raise ValueError(
            f"{listing.name} has no examples of the task {task!r}, it has {', '.join(tasks)}"
        )
    if limit is None or limit >= len(found):
        return found

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{listing.entries[index].id}".encode()).digest()

    return sorted(sorted(found, key=draw)[:limit])
