"""Tiny random checkpoints in the hub's layout, made by the script that also makes the big ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _checkpoints(tmp_path_factory, checkpoint_script) -> Callable[..., Path]:
    made: dict[tuple[str, str], Path] = {}

    def get(size: str, dtype: str) -> Path:
        if (size, dtype) not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / size
            made[size, dtype] = checkpoint_script.make_checkpoint(folder, size, dtype=dtype)
        return made[size, dtype]

    return get


@pytest.fixture
def checkpoint(_checkpoints, tmp_path) -> Path:
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(_checkpoints("tiny", "BF16"), tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def read_only_checkpoint(_checkpoints) -> Callable[..., Path]:
    """(size, dtype) -> a checkpoint that no test changes."""
    return lambda size="tiny", dtype="BF16": _checkpoints(size, dtype)
