"""Decide whether `--data` can name a data set, before packages are loaded that read one."""

from __future__ import annotations

from pathlib import Path

from .layouts import LAYOUTS

FILE_SUFFIXES = (".jsonl", ".json")
EASY_VQA = "easy-vqa"  # the one that needs no source
LAYOUT_NAMES = (*LAYOUTS, "mvbench", EASY_VQA)


def check_data_spec(spec: str, media_root: Path | None = None) -> None:
    """Refuse what no reader takes; what is in the files, `open_data` says later.

    Args:
        spec: of `--data`.
        media_root: of `--media-root`.

    Raises:
        ValueError: nothing of the name is there, and it is no benchmark either.
    """
    if media_root is not None and not media_root.is_dir():
        raise ValueError(f"media root {str(media_root)!r:.80} is no folder")
    if not spec:
        raise ValueError("no data is given: calibration and checks need real pictures")
    path = Path(spec)
    try:
        is_dir, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # too long a name, a zero byte
        raise ValueError(f"can't read {spec!r:.80}: {error}") from error
    if is_dir:
        return
    if path.suffix in FILE_SUFFIXES:
        if not exists:
            raise ValueError(f"{spec}: No such file")
        return
    layout, colon, source = spec.partition(":")
    known = ", ".join(LAYOUT_NAMES)
    if exists:
        raise ValueError(
            f"{spec} is no folder, .jsonl or .json file; a benchmark's files go with its name "
            f"before a colon: {known}"
        )
    if layout in LAYOUT_NAMES and (source or layout == EASY_VQA):
        return
    if not colon or not source:
        raise ValueError(f"there is no {spec}: give a folder of pictures or a .jsonl file")
    raise ValueError(f"there is no {spec}, and no layout {layout!r}: known are {known}")
