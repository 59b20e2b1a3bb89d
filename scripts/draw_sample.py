"""Draw the pictures of samples/pictures: at least one of each kind, from seeds of their own split.

    python scripts/draw_sample.py --out samples/pictures

questions.json lists each with its question and right answer; a clip is a list of frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from sample.tasks import make_example, pick_shape

# task -> the groups drawn; chosen by eye for variety, not for what the sample answers.
SHOWN = {
    "receipt": (0, 3),
    "price tag": (2,),
    "number": (1,),
    "bars": (3,),
    "dial": (4, 2),
    "clip": (4,),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main() -> None:
    """Draw and list."""
    out = parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for task, groups in SHOWN.items():
        for group in groups:
            example = make_example("shown", pick_shape(task, Random(group)), group, 0)
            stem = f"{task.replace(' ', '-')}-{group}"
            entry: dict[str, object] = {"task": task}
            if example.is_clip:
                names = [f"{stem}-frame-{i}.png" for i in range(len(example.frames))]
                entry["frames"] = names
            else:
                names = [f"{stem}.png"]
                entry["picture"] = names[0]
            for name, frame in zip(names, example.frames, strict=True):
                frame.save(out / name, optimize=True)
            entries.append(entry | {"question": example.question, "answer": example.answer})
    (out / "questions.json").write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
