"""The command line in a process of its own, and a tiny bundle to use it on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# As if the named packages were not installed
BLOCK_AND_RUN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from vlmedge.runtime.cli.main import main
code = main(sys.argv[1:])
{after}
sys.exit(code)
"""

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """run_cli(*args, blocked=(), after="", env={}, stdin=""): `vlmedge *args` -> its end."""

    def run(
        *args: object,
        blocked: Sequence[str] = (),
        after: str = "",
        env: dict[str, str] | None = None,
        stdin: str = "",
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        code = BLOCK_AND_RUN.format(blocked=set(blocked), after=after)
        clean = {name: value for name, value in os.environ.items() if name != "VLMEDGE_DEBUG"}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            env=clean | {"COLUMNS": "100"} | (env or {}),
            cwd=cwd,
            check=False,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(make_bundle) -> Path:
    """A seeded random Qwen2-VL of two layers."""
    return make_bundle("tiny").checkpoint


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle) -> Path:
    """Its bundle; not to be changed."""
    return make_bundle("tiny").bundle


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture file of 60x40 pixels."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    levels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path
