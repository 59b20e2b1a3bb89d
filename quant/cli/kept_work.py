"""Say what an interrupted run leaves on the disk for the next one."""

from __future__ import annotations

from pathlib import Path

NOTHING_KEPT = "nothing is kept, the same command starts anew"


def describe_stages(folders: list[Path], total: int | None = None) -> str:
    """Finished stages in folders of unfinished work: how many, where, and how to go on.

    Args:
        folders: that may be there; layers are a folder each, rows a file each.
        total: of how many, where that is known.
    """
    counts = {folder: _count(folder) for folder in folders}
    count = sum(counts.values())
    if not count:
        return NOTHING_KEPT
    of_total = f"{count} of {total}" if total is not None and count <= total else f"{count}"
    where = next(folder for folder, number in counts.items() if number)
    noun = "stage is" if count == 1 and total is None else "stages are"
    return f"{of_total} finished {noun} kept in {where}: the same command goes on from there"


def _count(folder: Path) -> int:
    stages = sum(1 for path in folder.glob("**/stage.json") if ".partial" not in path.parent.name)
    return stages + sum(1 for _ in folder.glob("rows-*/*.json"))
