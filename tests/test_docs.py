"""The documents tell of the code that is there."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
DRAWINGS = sorted((ROOT / "docs/images").glob("*.svg"))
# Pages that say which file does what
GUIDES = ("README.md", "docs/architecture.md", "docs/extend.md")
PATH = re.compile(r"`((?:runtime|quant|export|scripts|tests|samples|docs)/[\w./*-]*)`")
FILE = re.compile(r"`(\w+\.py)`")
DRAWN = re.compile(r"(?<![\w/])((?:[a-z_0-9]+/)+[a-z_0-9]*)(?![\w/.])")  # quantize/plan


def test_generated_documents_are_fresh():
    command = [sys.executable, "scripts/make_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_python_example_in_the_documents_compiles_and_imports_what_is_there():
    """No more than that: those of the README and runtime.md are run by tests/cli/test_examples."""
    examples = [
        (path.name, block.partition("```")[0])
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for block in path.read_text(encoding="utf-8").split("```python\n")[1:]
    ]
    assert examples
    for name, code in examples:
        compile(code, name, "exec")
        check_imports(code, name)


def test_programs_inside_of_tests_import_what_is_there():
    """They run in processes of their own, some of them in rare cases only."""
    count = 0
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                count += check_imports(node.value, f"{path.relative_to(ROOT)}:{node.lineno}")
    assert count > 20


def check_imports(code: str, where: str) -> int:
    """See that a text's imports of vlmedge name modules and names that are there; their number."""
    imports = re.findall(r"^ *from vlmedge\.([\w.]+) import ([\w, ]+)", code, re.MULTILINE)
    for module, names in imports:
        assert importlib.util.find_spec(f"vlmedge.{module}"), f"{where}: no vlmedge.{module}"
        if module.startswith("quant.harness."):  # imports its host, which is not installed
            continue
        found = importlib.import_module(f"vlmedge.{module}")
        for word in names.split(","):
            name = word.split()[0]
            if not hasattr(found, name):
                spec = importlib.util.find_spec(f"vlmedge.{module}.{name}")
                assert spec is not None, f"{where}: vlmedge.{module} has no {name}"
    return len(imports)


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)(?:#[\w-]+)?\)", index))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == {"README.md"}
    assert "(docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", GUIDES)
def test_every_path_that_a_guide_names_is_there(page):
    """NAME in a path stands for what a reader adds."""
    text = (ROOT / page).read_text(encoding="utf-8")
    names = [name for name in PATH.findall(text) if "NAME" not in name]
    missing = [name for name in names if not any(ROOT.glob(name.rstrip("/")))]
    assert names
    assert not missing


@pytest.mark.parametrize("page", GUIDES)
def test_a_file_named_without_its_folder_lies_beside_what_is_named_with_it(page):
    """In a folder of a path in the same paragraph, row or heading; tests anywhere in tests/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    folders: set[Path] = set()
    for part in re.split(r"\n(?=\n|\||- |\d+\. |#)", text):
        paths = [ROOT / name for name in PATH.findall(part) if "*" not in name]
        near = {path if path.is_dir() else path.parent for path in paths}
        if part.lstrip().startswith("#"):
            folders = {ROOT / name for name in re.findall(r"\bin ((?:\w+/)+)", part)}
        for name in FILE.findall(part):
            if name.startswith("test_"):
                assert any((ROOT / "tests").rglob(name)), name
            else:
                assert any((folder / name).is_file() for folder in near | folders), name


def test_what_the_drawings_of_the_architecture_name_is_there():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawings = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    names = set(DRAWN.findall(drawings))
    layers = [ROOT / layer for layer in ("runtime", "quant", "export")]
    places = [ROOT, *layers, ROOT / "runtime/inputs"]
    there = {
        name
        for name in names
        if any((place / name).is_dir() or (place / f"{name}.py").is_file() for place in places)
    }
    assert len(names) > 30
    assert names - there == set()


def test_the_readme_shows_what_the_demo_prints():
    """The question and the answer; `.ci/run` runs the demo itself."""
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition("```text\n")[2]
    asked = json.loads((ROOT / "samples/pictures/questions.json").read_text(encoding="utf-8"))[0]
    assert f"question  {asked['question']}\n" in shown
    assert f"answer    {asked['answer']}\n" in shown
    assert f"picture   samples/pictures/{asked['picture']}\n" in shown


def test_a_drawing_is_the_same_in_light_and_in_dark():
    """But for its colours, which are all in its style."""
    assert DRAWINGS
    for path in DRAWINGS:
        drawing = path.read_text(encoding="utf-8")
        ElementTree.fromstring(drawing)
        assert "#" not in re.sub(r"(?s)<style>.*</style>|url\(#\w+\)", "", drawing), path.name
        name, _, kind = path.stem.rpartition("-")
        other = path.with_name(f"{name}-{'dark' if kind == 'light' else 'light'}.svg")
        shapes = [
            re.sub(r"(?s)<style>.*</style>", "", text)
            for text in (drawing, other.read_text(encoding="utf-8"))
        ]
        assert shapes[0] == shapes[1], path.name
