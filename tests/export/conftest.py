"""Tiny random checkpoints in the hub's layout, made by the script that also makes the big ones."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def make_checkpoint_script() -> ModuleType:
    path = SCRIPTS / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _checkpoints(tmp_path_factory, make_checkpoint_script) -> Callable[..., Path]:
    made: dict[tuple[str, str], Path] = {}

    def get(size: str, dtype: str) -> Path:
        if (size, dtype) not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / size
            made[size, dtype] = make_checkpoint_script.make_checkpoint(folder, size, dtype=dtype)
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
