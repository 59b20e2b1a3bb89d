"""Read MVBench's JSON files and the frames of its videos as examples.

| what | where (`mvbench:PATH`, or the hub id OpenGVLab/MVBench for the JSON files) |
|---|---|
| questions | PATH/json/TASK.json: lists of video, question, candidates, answer, maybe start, end |
| frames | PATH/video/FOLDER/.../VIDEO/: pictures of one video, in the order of their names |

FOLDER is the one the hub's zip files bring (`FOLDERS`), VIDEO a video's name without its ending. Of
tvqa the hub has frames; other videos have to be cut into frames first. Eight frames are taken, from
the middle of eight equal parts, as the benchmark does. Where a question is about a part of the
video (start, end in seconds), "fps3" somewhere in the path tells which frames these are; without it
the frames are taken to be those of the part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.inputs.picture_files import is_picture_name, list_pictures
from .choices import LETTERS
from .examples import Example
from .hub import download
from .jsonl import read_json
from .listing import Entry, Listing, make_listing
from .pictures import CLIP_SUFFIXES
from .prompts import ask_for_letter, make_messages

HUB = "OpenGVLab/MVBench"
NUM_FRAMES = 8
MAX_SECONDS = 1e6
FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception",
    "action_localization": "sta",
    "action_prediction": "star",
    "action_sequence": "star",
    "character_order": "perception",
    "counterfactual_inference": "clevrer",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa",
    "fine_grained_action": "Moments_in_Time_Raw",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer",
    "moving_count": "clevrer",
    "moving_direction": "clevrer",
    "object_existence": "clevrer",
    "object_interaction": "star",
    "object_shuffle": "perception",
    "scene_transition": "scene_qa",
    "state_change": "perception",
    "unexpected_action": "FunQA_test",
}
_KEYS = {"video", "question", "candidates", "answer"}


def read_mvbench(source: str) -> Listing:
    """List the questions of all tasks that are there.

    Raises:
        ValueError: no such folder, no questions, or a malformed one.
    """
    root = Path(source)
    if not root.is_dir():
        root = download("mvbench", source, "json/*.json")
    paths = [path for task in FOLDERS if (path := root / "json" / f"{task}.json").is_file()]
    if not paths:
        raise ValueError(f"{source} has no json/TASK.json of MVBench, as action_antonym.json")
    entries, rows = [], []
    for path in paths:
        raw = read_json(path)
        if not isinstance(raw, list):
            raise ValueError(f"{path} holds no list of questions")
        for number, row in enumerate(raw):
            where = f"{path} entry {number}"
            _check(row, where)
            entries.append(Entry(f"{path.stem}/{number}", "mvbench", where))
            rows.append(row)
    clips: dict[tuple[str, str], list[Path]] = {}

    def load(indices: Sequence[int]) -> list[Example]:
        if not clips:
            clips.update(_find_clips(root))
        return [_make_example(entries[i], rows[i], root, clips) for i in indices]

    return make_listing("mvbench", entries, load)


def pick_frames(
    num_frames: int, start: float = 0.0, end: float | None = None, rate: float | None = None
) -> list[int]:
    """Indices of the frames that are shown: from the middle of NUM_FRAMES equal parts.

    Args:
        num_frames: of the whole clip.
        start: of the part that is asked about, in seconds.
        end: of that part; None: the clip's.
        rate: frames a second; None: start and end are passed over.
    """
    first, last = 0, num_frames - 1
    if rate is not None and end is not None:
        first, last = min(round(start * rate), last), min(round(end * rate), last)
    step = max(0, last - first) / NUM_FRAMES
    return [min(last, int(first + step / 2 + round(step * i))) for i in range(NUM_FRAMES)]


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with {', '.join(sorted(_KEYS))}")
    if missing := sorted(_KEYS - row.keys()):
        raise ValueError(f"{where} has no {', '.join(missing)}")
    texts = [row["video"], row["question"], row["answer"]]
    choices = row["candidates"]
    if not isinstance(choices, list) or not all(isinstance(t, str) for t in (*texts, *choices)):
        raise ValueError(f"{where} has values that are no texts")
    if row["answer"] not in choices or len(choices) > len(LETTERS):
        raise ValueError(f"{where} has the answer {row['answer']!r}, which is no candidate")
    for key in ("start", "end"):
        value = row.get(key, 0)
        if not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
            raise ValueError(f"{where} has {key} {value!r:.40}, needed seconds")


def _find_clips(root: Path) -> dict[tuple[str, str], list[Path]]:
    """(FOLDER, VIDEO) -> folders of frames."""
    known, found = set(FOLDERS.values()), {}
    for parent, _, names in os.walk(root):
        if any(map(is_picture_name, names)):
            path = Path(parent)
            parts = path.relative_to(root).parts
            for folder in known:  # copies are named ssv2_video_mp4, nturgbd_convert
                if any(part == folder or part.startswith(f"{folder}_") for part in parts[:-1]):
                    found.setdefault((folder, parts[-1]), []).append(path)
    return found


def _make_example(
    entry: Entry,
    row: Mapping[str, Any],
    root: Path,
    clips: Mapping[tuple[str, str], list[Path]],
) -> Example:
    choices = tuple(row["candidates"])
    folder = FOLDERS[entry.id.partition("/")[0]]
    video = Path(row["video"])
    name = video.stem if video.suffix.lower() in CLIP_SUFFIXES else video.name
    found = clips.get((folder, name), [])
    if len(found) > 1:
        raise ValueError(f"{entry.where}: frames of {name} are in {found[0]} and in {found[1]}")
    # a clip that isn't there is told of when pictures are opened, and may be skipped
    frames = [str((root / "video" / folder / name).resolve())]
    if found:
        paths = list_pictures(found[0].resolve())
        rate = re.search(r"fps([0-9]+)", str(found[0].relative_to(root)))
        indices = pick_frames(
            len(paths), row.get("start", 0), row.get("end"), float(rate[1]) if rate else None
        )
        frames = [str(paths[i]) for i in indices]
    return Example(
        id=entry.id,
        messages=make_messages(ask_for_letter(row["question"], choices), (), frames),
        answers=(LETTERS[choices.index(row["answer"])],),
        task=entry.task,
        metric="multiple_choice",
        choices=choices,
    )
