"""Nothing of ours imports a library that reports before its switch is off."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmedge.runtime.telemetry import LATE_NOTICE, SWITCHES

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("runtime", "quant", "export")
# Prints the switches at the moment a library that reports is looked for, and ends there
WATCH = f"""
import os, sys

SWITCHES = {SWITCHES!r}

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name in SWITCHES:
            print(name, os.environ.get(SWITCHES[name][0], "unset"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watcher())
"""


def run_python(code: str, *args: str, env: dict[str, str] | None = None) -> str:
    """The stdout of a fresh Python that has none of the switches set."""
    names = [name for name, _ in SWITCHES.values()]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env=clean | (env or {}),
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imports(path: Path, library: str) -> bool:
    """Whether a file imports a library, at its top or later, by a statement or by name."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if library in {str(name).partition(".")[0] for name in names}:
            return True
    return False


@pytest.mark.parametrize("library", SWITCHES)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_imports_a_library_has_turned_its_reports_off(layer, library):
    if not any(imports(path, library) for path in (ROOT / layer).rglob("*.py")):
        pytest.skip(f"nothing in {layer} imports {library}")
    variable, off = SWITCHES[library]
    code = f"import os, vlmedge.{layer}; print(os.environ[{variable!r}])"
    assert run_python(code) == off


@pytest.mark.parametrize(
    "module",
    [
        "vlmedge.runtime.backends.ort.session",
        "vlmedge.quant.check.run",
        "vlmedge.quant.sweep.ray_pool",
        "vlmedge.quant.compare.observe",
        "vlmedge.export.verify.selfcheck",
    ],
)
def test_the_switch_is_off_when_the_library_is_looked_for(module):
    library, value = run_python(f"{WATCH}\nimport {module}").split()
    assert value == SWITCHES[library][1]


def test_scripts_samples_and_their_packages_import_onnxruntime_with_its_switch_off():
    found = [
        path
        for folder in ("scripts", "samples")
        for path in (ROOT / folder).rglob("*.py")
        if imports(path, "onnxruntime")
    ]
    assert found  # or this test is about nothing
    for path in found:
        package = path.parent.name if (path.parent / "__init__.py").exists() else ""
        module = ".".join(filter(None, (package, path.stem)))
        folder = path.parent.parent if package else path.parent
        code = (
            f"{WATCH}\nsys.path.insert(0, sys.argv[1])\nimport importlib\n"
            f"importlib.import_module({module!r})\nimportlib.import_module('onnxruntime')"
        )
        assert run_python(code, str(folder)) == "onnxruntime 1", path


def test_no_file_of_the_tree_imports_onnxruntime_before_vlmedge():
    """The scripts that start at their first line: what they import first is what counts."""
    for path in (ROOT / "scripts").glob("*.py"):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not any(name.startswith("onnxruntime") for name in names), path


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_what_the_user_has_set_stays(value):
    env = dict.fromkeys((name for name, _ in SWITCHES.values()), value)
    code = "import os, vlmedge.quant, vlmedge.export; print([os.environ[n] for n in sys.argv[1:]])"
    assert run_python(f"import sys; {code}", *env, env=env) == str([value] * len(env))


def test_processes_that_we_start_inherit_the_switch():
    code = (
        "import subprocess, sys, vlmedge.runtime\n"
        "code = 'import os; print(os.environ[\"ORT_DISABLE_TELEMETRY\"])'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)"
    )
    assert run_python(code) == "1"


def test_a_host_that_was_first_is_told_that_it_is_too_late(make_bundle):
    code = (
        "import {first}\nimport sys\nfrom vlmedge.runtime import Model\n"
        "with Model.load(sys.argv[1]) as model: print(*model.notices)"
    )
    bundle = str(make_bundle("tiny").bundle)
    assert run_python(code.format(first="onnxruntime"), bundle) == LATE_NOTICE
    assert run_python(code.format(first="vlmedge.runtime, onnxruntime"), bundle) == ""
    env = {"ORT_DISABLE_TELEMETRY": "1"}
    assert run_python(code.format(first="onnxruntime"), bundle, env=env) == ""
