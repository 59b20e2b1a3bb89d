"""The documents tell of the code that is there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_generated_documents_are_fresh():
    command = [sys.executable, "scripts/make_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_python_example_in_the_documents_compiles():
    """Syntax only: the README's and runtime.md's first ones are run by tests/cli/test_examples."""
    examples = [
        (path.name, block.partition("```")[0])
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for block in path.read_text(encoding="utf-8").split("```python\n")[1:]
    ]
    assert examples
    for name, code in examples:
        compile(code, name, "exec")
