"""What a user installs: the wheel and the sdist hold the tree's three layers and nothing else.

Both are built once from a clean export of the tracked files, the wheel from the sdist, as a package
registry's users get them. Without a network: build-system's setuptools is among the dev packages.
"""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("runtime", "export", "quant")
# Optimum looks for commands of other distributions in a folder of this name
REGISTER = {"export/optimum_register/": "optimum/commands/register/"}
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
# Of the sdist, beside the layers: what setuptools reads to build, and what it writes
SOURCES = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
WRITTEN = {"PKG-INFO", "setup.cfg"}


def name_in_wheel(tracked: str) -> str:
    """Where a tracked file of a layer is installed."""
    for folder, installed in REGISTER.items():
        if tracked.startswith(folder):
            return installed + tracked.removeprefix(folder)
    return f"vlmedge/{tracked}"


def compare_names(expected: Iterable[str], found: Iterable[str]) -> list[str]:
    """A line for every name that only one of them has, and for every name that is there twice."""
    found = list(found)
    lines = [f"missing: {name}" for name in sorted(set(expected) - set(found))]
    lines += [f"not expected: {name}" for name in sorted(set(found) - set(expected))]
    return lines + [f"twice: {name}" for name in sorted({n for n in found if found.count(n) > 1})]


def list_layers(tracked: Iterable[str]) -> list[str]:
    """The files of the three layers: code, and the files that code reads."""
    return [name for name in tracked if name.partition("/")[0] in LAYERS]


def list_wheel(path: Path) -> list[str]:
    """Names in a wheel; of its metadata's folder "dist-info/NAME", without the version."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return [re.sub(r"^vlmedge-[^/]+\.dist-info/", "dist-info/", name) for name in names]


def list_sdist(path: Path) -> list[str]:
    """Names of files in an sdist, without its only folder and setuptools' egg-info."""
    with tarfile.open(path) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isfile()]
    assert len({name.parts[0] for name in names}) == 1
    inner = ["/".join(name.parts[1:]) for name in names]
    return [name for name in inner if not name.startswith("vlmedge.egg-info/")]


def compare_wheel(tracked: Iterable[str], path: Path) -> list[str]:
    """Differences between a wheel's names and those that the tree says it should have."""
    expected = [*map(name_in_wheel, list_layers(tracked)), *(f"dist-info/{n}" for n in METADATA)]
    return compare_names(expected, list_wheel(path))


def copy_tree(tracked: Iterable[str], folder: Path) -> Path:
    """A clean export: the tracked files, as they are now, and nothing that is ignored."""
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, out: Path, *options: str) -> None:
    """Build distributions of a tree with the setuptools that is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *options, source],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Names of the tracked files that are there."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory) -> Path:
    """A folder with an sdist of the tree and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("distribution")
    build(copy_tree(tracked, folder / "tree"), folder / "dist")
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


def test_the_wheel_holds_every_file_of_the_layers_and_nothing_else(tracked, wheel):
    """It is built from the sdist, which so has all that is needed to build it."""
    assert compare_wheel(tracked, wheel) == []


def test_the_sdist_holds_the_layers_and_what_builds_them_and_nothing_else(tracked, sdist):
    expected = {*list_layers(tracked), *SOURCES, *WRITTEN}
    assert compare_names(expected, list_sdist(sdist)) == []


def test_the_wheels_files_are_the_trees_byte_for_byte(tracked, wheel):
    with zipfile.ZipFile(wheel) as archive:
        for name in list_layers(tracked):
            assert archive.read(name_in_wheel(name)) == (ROOT / name).read_bytes(), name


def test_the_wheel_has_no_package_of_its_own_for_the_namespace(wheel):
    """vlmedge/__init__.py would hide what another distribution installs as vlmedge.SOMETHING."""
    inits = {"vlmedge/__init__.py", "optimum/__init__.py", "optimum/commands/__init__.py"}
    assert not inits & set(list_wheel(wheel))


def test_every_entry_point_names_a_function_of_a_file_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt")]
        points = list_entry_points(archive.read(name).decode())
        assert len(points) > 12
        sources = {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".py")}
    assert [line for point in points for line in check_entry_point(point, sources)] == []


def list_entry_points(text: str) -> list[str]:
    """Every "module:function" of an entry_points.txt."""
    return [line.partition("=")[2].strip() for line in text.splitlines() if "=" in line]


def check_entry_point(point: str, sources: dict[str, str]) -> list[str]:
    """What is wrong with an entry point: no file, or a file without that name; else nothing."""
    module, _, function = point.partition(":")
    path = module.replace(".", "/")
    source = sources.get(f"{path}.py", sources.get(f"{path}/__init__.py"))
    if source is None:
        return [f"{point}: no {path}.py"]
    defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return [] if function in defined else [f"{point}: no function {function} in {path}.py"]


def test_a_package_that_pyproject_forgets_is_seen(tracked, tmp_path):
    """No file of it is in the wheel, and no build fails for that."""
    tree = copy_tree(tracked, tmp_path / "tree")
    settings = (tree / "pyproject.toml").read_text("utf-8")
    assert settings.count('    "vlmedge.quant.recipe.presets",\n') == 1
    forgotten = settings.replace('    "vlmedge.quant.recipe.presets",\n', "")
    (tree / "pyproject.toml").write_text(forgotten, "utf-8")
    build(tree, tmp_path / "dist", "--wheel")
    (path,) = (tmp_path / "dist").glob("*.whl")
    lost = [name for name in tracked if name.startswith("quant/recipe/presets/")]
    assert len(lost) > 4
    assert compare_wheel(tracked, path) == [f"missing: vlmedge/{name}" for name in sorted(lost)]


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (["a", "b"], []),
        (["a"], ["missing: b"]),
        (["b", "a", "c"], ["not expected: c"]),
        (["a", "b", "b"], ["twice: b"]),
        (["c"], ["missing: a", "missing: b", "not expected: c"]),
    ],
)
def test_names_that_differ_are_named(found, lines):
    assert compare_names(["a", "b"], found) == lines


def test_entry_points_that_lead_nowhere_are_named():
    sources = {"a/b.py": "def main(): pass\nx = 1\n", "a/c/__init__.py": "def run(): pass\n"}
    assert check_entry_point("a.b:main", sources) == check_entry_point("a.c:run", sources) == []
    assert check_entry_point("a.d:main", sources) == ["a.d:main: no a/d.py"]
    assert check_entry_point("a.b:run", sources) == ["a.b:run: no function run in a/b.py"]
    assert list_entry_points("[x]\nname = a.b:main\n\n[y]\nb=a:c\n") == ["a.b:main", "a:c"]
