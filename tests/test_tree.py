"""The tree itself: what the README says of it, what must not be in it, what is installed of it."""

import re
import subprocess
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
MAX_README_LINES = 180
LAYERS = ("runtime", "quant", "export")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Names of the tracked files that are there."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def read_text(name: str) -> str | None:
    """A tracked file's text, None for a binary."""
    data = (ROOT / name).read_bytes()
    return None if b"\0" in data else data.decode("utf-8")


def test_no_file_holds_a_path_of_some_machine(tracked):
    folders = ("tm" + "p", "roo" + "t", "wor" + "k", "hom" + "e/[a-z]", "User" + "s/[A-Za-z]")
    pattern = re.compile(rf"(?<![\w.$}}/>-])/(?:{'|'.join(folders)})(?:/|\b)")
    assert pattern.search("see /" + "tm" + "p/x")
    for name in tracked:
        for number, line in enumerate((read_text(name) or "").splitlines(), 1):
            assert not pattern.search(line), f"{name}:{number}: {line.strip()[:120]}"


def test_the_readmes_tree_names_every_room_and_nothing_else(tracked):
    listed = read_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(listed) == len(set(listed)), "a folder is named twice"
    there = {name.partition("/")[0] for name in tracked if "/" in name and name[0] != "."}
    for name in tracked:
        if name.startswith(tuple(f"{layer}/" for layer in LAYERS)):
            there |= {str(folder) for folder in Path(name).parents} - {"."}
    assert there - set(listed) == set(), "on the disk, not in the README"
    assert set(listed) - there == set(), "in the README, not on the disk"


def read_tree(readme: str) -> list[str]:
    """Folders of the README's tree, "quant/recipe/presets": a line's first, and those in ()."""
    tree = readme.partition("## The tree")[2].partition("```text\n")[2].partition("```")[0]
    listed, layer = [], ""
    for line in tree.splitlines():
        if not line.startswith(" "):  # a layer, or the other folders side by side
            names = re.findall(r"([\w-]+)/(?: |$)", line)
            layer = names[0]
            listed += names
            continue
        room = f"{layer}/{line.strip().partition('/')[0]}"
        nested = re.search(r"\(((?:[\w-]+/(?:, )?)+)\)$", line)
        listed += [
            room,
            *(f"{room}/{name}" for name in re.findall(r"[\w-]+", nested[1] if nested else "")),
        ]
    return listed


def test_a_folder_that_the_tree_forgets_or_invents_is_seen():
    tree = "## The tree\n```text\nquant/   a\n  recipe/   b (presets/)\nscripts/ tests/\n```\n"
    assert read_tree(tree) == ["quant", "quant/recipe", "quant/recipe/presets", "scripts", "tests"]


def test_the_readme_is_short_enough_to_be_read():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


def test_links_between_documents_lead_somewhere(tracked):
    for name in tracked:
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", read_text(name) or ""):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} -> {target}"


def test_scripts_are_executable_and_say_what_runs_them(tracked):
    done = subprocess.run(
        ["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = (line.split(maxsplit=3) for line in done.stdout.splitlines())
    modes = {fields[3]: fields[0] for fields in listed if fields[3] in tracked}
    scripts = {name for name in tracked if name.endswith(".sh") and name.startswith("scripts/")}
    assert len(scripts) > 4
    executable = {name for name, mode in modes.items() if mode == "100755"}
    assert scripts <= executable
    for name in executable:
        assert (read_text(name) or "").startswith("#!/usr/bin/env bash\n"), name
    started = {name for name in tracked if (read_text(name) or "").startswith("#!")}
    assert started <= executable, "a first line of #! and no right to be run"


def test_links_to_headings_name_one_that_is_there(tracked):
    for name in tracked:
        if not name.endswith(".md"):
            continue
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", read_text(name) or ""):
            page = (ROOT / name).parent / target if target else ROOT / name
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{name} -> {target}#{anchor}"


def test_documents_lead_to_places_by_links_and_not_by_directions(tracked):
    """ "See below" is wrong as soon as something is moved, and in a table it never says where."""
    pattern = re.compile(r"\bsee (below|above)\b|[(](below|above)[)]", re.IGNORECASE)
    for name in tracked:
        if name.endswith(".md") and name != "docs/cli.md":  # made from the commands' own help
            for number, line in enumerate((read_text(name) or "").splitlines(), 1):
                assert not pattern.search(line), f"{name}:{number}: {line.strip()[:120]}"


def test_no_python_file_is_too_long_to_hold_one_idea(tracked):
    for name in tracked:
        if name.endswith(".py") and name.partition("/")[0] in ("runtime", "export", "quant"):
            assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAX_LINES, name


def test_every_folder_of_code_is_installed(tracked):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = settings["tool"]["setuptools"]
    packages = (package.removeprefix("vlmedge.") for package in setuptools["packages"])
    folders = {package.replace(".", "/") for package in packages}
    folders |= set(setuptools["package-dir"].values())
    for name in tracked:
        folder = str(Path(name).parent)
        if name.endswith(".py") and folder.partition("/")[0] in ("runtime", "export", "quant"):
            assert folder in folders, f"{name} would be in no wheel"


def test_constraints_name_versions_only(tracked):
    assert "constraints.txt" in tracked
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert len(pins) > 20
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin), pin
