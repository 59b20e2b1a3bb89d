"""Find a benchmark's files on this disk by its path or hub id."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_files(layout: str, source: str, pattern: str) -> list[Path]:
    """Files of one split, in the order of their names.

    Args:
        layout: its name, for messages.
        source: a file, a folder with the split's files somewhere below it, or a hub id.
        pattern: the files' names in the hub's repository: "data/test-*.parquet".

    Raises:
        ValueError: nothing there, or a hub id that can't be downloaded.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        path = download(layout, source, pattern)
    # A folder may be the repository, one of its folders, or a copy laid out in another way.
    found = sorted(path.glob(pattern)) or sorted(path.rglob(pattern.rpartition("/")[2]))
    if not found:
        raise ValueError(f"{source} has no {pattern} in it: give the files' folder, or one file")
    return found


def download(layout: str, source: str, *patterns: str) -> Path:
    """The folder of a hub's data set, of which the files of `patterns` were brought here.

    Raises:
        ValueError: no path and no hub id, huggingface_hub is missing, or it can't get the files.
    """
    if not HUB_ID.fullmatch(source):
        raise ValueError(f"there is no {source}: give {layout}:PATH or {layout}:OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"there is no folder {source}; to download it from the hub, pip install huggingface-hub"
        ) from error
    try:
        found = snapshot_download(source, repo_type="dataset", allow_patterns=list(patterns))
    except Exception as error:  # the hub's, HTTP's and the disk's errors have no common base
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"there is no folder {source}, and the hub's can't be had ({reason}): "
            f"download it elsewhere and give {layout}:PATH"
        ) from error
    return Path(found)
