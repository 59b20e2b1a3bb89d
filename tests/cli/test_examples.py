"""The documents' examples run as they stand, on a tiny bundle."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/runtime.md")
EXAMPLES = [
    pytest.param(block.partition("```")[0], id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(
        (ROOT / page).read_text(encoding="utf-8").split("```python\n")[1:]
    )
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_runs_and_prints(code, tiny_bundle, picture, tmp_path):
    (tmp_path / "reader.bundle").symlink_to(tiny_bundle)
    shutil.copy(picture, tmp_path / "receipt.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
