"""export -> quant -> runtime, never back; and nothing heavier than each of them needs."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"runtime": (), "quant": ("runtime",), "export": ("quant", "runtime")}
# What a layer never loads, whatever it is asked to do
TORCH = ("torch", "transformers", "torchvision", "accelerate")
ONNX_TOOLS = ("onnx", "onnx_ir", "ml_dtypes", "safetensors", "huggingface_hub")
ENGINES = ("onnxruntime", "tensorrt", "tokenizers", "jinja2", "av", "scipy", "matplotlib", "cv2")

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} was imported", name=name)

sys.meta_path.insert(0, Blocker())
"""


def list_files(layer: str) -> list[Path]:
    """The Python files of a layer that are installed as vlmedge.LAYER."""
    return sorted((ROOT / layer).rglob("*.py"))


def run_python(code: str, *args: object, blocked: tuple[str, ...] = ()) -> str:
    """Run code in a fresh Python where importing a blocked package fails; return its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=set(blocked)) + code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(make_bundle) -> Path:
    """A seeded random Qwen2-VL of two layers."""
    return make_bundle("tiny").checkpoint


def test_importing_the_runtime_loads_nothing_heavy():
    code = "import vlmedge.runtime; print({m.partition('.')[0] for m in sys.modules})"
    loaded = set(ast.literal_eval(run_python(code)))
    assert not loaded & {*TORCH, *ONNX_TOOLS, *ENGINES, "typer", "rich", "numpy", "PIL"}


def test_importing_the_model_loads_no_engine():
    code = "from vlmedge.runtime import Model; print({m.partition('.')[0] for m in sys.modules})"
    loaded = set(ast.literal_eval(run_python(code)))
    assert not loaded & {*TORCH, *ONNX_TOOLS, "onnxruntime", "tensorrt", "typer", "rich"}


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_export_runs_without_torch_and_the_answer_without_onnx(checkpoint, tmp_path, weights):
    """The whole way in two processes, each unable to import what it must not need."""
    export = (
        "from vlmedge.runtime.cli.main import main\n"
        "code = main(['export', sys.argv[1], sys.argv[2], '--weights', sys.argv[3]])\n"
        "sys.exit(code)"
    )
    run_python(export, checkpoint, tmp_path / "bundle", weights, blocked=(*TORCH, "onnxruntime"))
    answer = (
        "import json, numpy as np\n"
        "from vlmedge.runtime import GenerationOptions, Model\n"
        "picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)\n"
        "options = GenerationOptions(max_new_tokens=3, ignore_eos=True)\n"
        "with Model.load(sys.argv[1]) as model:\n"
        "    print(len(model.answer('What is it?', [picture], options=options).token_ids))\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    out = run_python(answer, tmp_path / "bundle", blocked=(*TORCH, *ONNX_TOOLS)).splitlines()
    assert out[0] == "3"
    assert not set(json.loads(out[1])) & {"typer", "rich", "scipy", "matplotlib", "cv2", "av"}


def test_graphs_for_tensorrt_are_written_without_torch_and_without_an_engine(
    make_bundle, checkpoint, tmp_path
):
    """Of a checkpoint and of a bundle: the extra `export` is all that it needs."""
    export = (
        "from vlmedge.runtime.cli.main import main\n"
        "sys.exit(main(['export', sys.argv[1], sys.argv[2], '--target', 'jetpack-6.2']))"
    )
    for i, source in enumerate((checkpoint, make_bundle("tiny", "fp16").bundle)):
        run_python(export, source, tmp_path / str(i), blocked=(*TORCH, "onnxruntime"))
        assert (tmp_path / str(i) / "decoder.onnx").is_file()


# Files that exist for something else: loaded when it is asked for, by the command or by its host.
NEED_TORCH = {"verify", "reference", "layer_hooks", "prompts"}  # of export/verify/
NEED_A_HOST = {"lmms_eval_adapter", "vlmevalkit_adapter"}


@pytest.mark.parametrize("layer", ["export", "quant"])
def test_every_module_of_a_layer_imports_without_torch(layer):
    """The reference of checks is export's; quant/compare/reference.py is only its contract."""
    without = NEED_A_HOST if layer == "quant" else NEED_TORCH
    paths = [path.relative_to(ROOT) for path in list_files(layer) if path.stem not in without]
    names = [".".join(("vlmedge", *path.with_suffix("").parts)) for path in paths]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    run_python(code, blocked=TORCH)


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_a_layer_imports_only_itself_and_the_layers_below(layer):
    allowed = {layer, *LAYERS[layer]}
    for path in list_files(layer):
        for node in ast.walk(ast.parse(path.read_bytes())):
            found = _find_layer(node, layer, measure_depth(path))
            assert found in {None, *allowed}, f"{path}:{node.lineno}"


def measure_depth(path: Path) -> int:
    """Folders between a file and the root: 1 for runtime/x.py, 2 for runtime/trt/x.py."""
    return len(path.relative_to(ROOT).parts) - 1


def _find_layer(node: ast.AST, layer: str, depth: int = 1) -> str | None:
    """The layer of ours that an import statement names, None for other statements."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if 1 <= node.level <= depth:
            return layer
        if node.level == depth + 1:
            return (module or node.names[0].name).partition(".")[0]
        if module.partition(".")[0] == "vlmedge":
            return (module.partition(".")[2] or node.names[0].name).partition(".")[0]
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith("vlmedge."):
                return alias.name.split(".")[1]
    return None


def test_no_runtime_file_looks_above_its_folder():
    """A device may hold runtime/ alone, under any name."""
    for path in list_files("runtime"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= measure_depth(path), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "code",
    [
        "from ..export import exporter",
        "from .. import export",
        "import vlmedge.export.cli",
        "from vlmedge import export",
        "from vlmedge.export.cli import export",
    ],
)
def test_the_import_reader_knows_every_form(code):
    (node,) = ast.parse(code).body
    assert _find_layer(node, "runtime") == "export"


# Who may import whom inside a layer: a file imports its own room and whatever stands on a lower
# line. An entry is a room's folder, with all that has no entry of its own, or a single file.
# docs/architecture.md draws the same order.
ROOMS = {
    "runtime": (
        "files terminal peak_memory.py shorten.py telemetry.py threads.py turnstile.py",
        "errors.py",
        "bundle inputs/formats inputs/template",
        "options.py",
        "answer.py inputs backends",
        "backends/ort backends/trt decode steps.py",
        "backends/open_backend.py stream.py",
        "engine.py",
        "model.py",
        "__init__.py",
        "cli",
        "__main__.py",
    ),
    "quant": (
        "__init__.py files",
        "data rounding",
        "graph recipe",
        "compare",
        "gate quantize harness",
        "blame report",
        "check sensitivity",
        "auto sweep",
        "cli",
    ),
    "export": (
        "__init__.py checkpoint/files checkpoint/keys",
        "checkpoint/text checkpoint/weights",
        "checkpoint/packed",
        "checkpoint",
        "checkpoint/adapters",
        "checkpoint/open.py",
        "checkpoint/source_hashes.py graphs",
        "exporter.py verify",
        "inspect_checkpoint.py lowering",
        "engines planning cli.py",
        "engines/script",
        "engines/cli.py optimum_register",
    ),
}
FLOORS = {
    f"{layer}/{entry}": floor
    for layer, lines in ROOMS.items()
    for floor, line in enumerate(lines)
    for entry in line.split()
}


def find_room(path: Path) -> str:
    """The entry of ROOMS that a file belongs to: its own, else that of the nearest folder."""
    parts = path.relative_to(ROOT).parts
    for end in range(len(parts), 0, -1):
        if (entry := "/".join(parts[:end])) in FLOORS:
            return entry
    raise AssertionError(f"{'/'.join(parts)} is in no room: give it one in ROOMS")


def find_module(base: Path, dotted: str) -> Path | None:
    """The file of a module, or of the package, that lies at a dotted path under a folder."""
    path = base.joinpath(*dotted.split(".")) if dotted else base
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def list_imports(path: Path) -> list[tuple[int, Path]]:
    """The files of this project that a file imports anywhere in it, each with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = path.parents[node.level - 1]
            elif module.partition(".")[0] == "vlmedge":
                base, module = ROOT, module.partition(".")[2]
            else:
                continue
            for alias in node.names:
                dotted = f"{module}.{alias.name}" if module else alias.name
                file = find_module(base, dotted) or find_module(base, module)
                found += [(node.lineno, file)] if file else []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vlmedge."):
                    file = find_module(ROOT, alias.name.partition(".")[2])
                    found += [(node.lineno, file)] if file else []
    return [(line, file) for line, file in found if file != path]


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_a_file_imports_its_own_room_and_those_below(layer):
    upward = []
    for path in list_files(layer):
        room = find_room(path)
        for line, file in list_imports(path):
            other = find_room(file)
            same_layer = other.split("/")[0] == layer
            if same_layer and other != room and FLOORS[other] >= FLOORS[room]:
                upward.append(f"{path.relative_to(ROOT)}:{line} of {room} imports {other}")
    assert not upward


def test_every_room_of_the_table_is_there():
    assert [entry for entry in FLOORS if not (ROOT / entry).exists()] == []


def test_no_file_imports_itself_through_others():
    files = [path for layer in LAYERS for path in list_files(layer)]
    graph = {path: {file for _, file in list_imports(path)} for path in files}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    "code",
    [
        "from ..backends import open_backend",
        "from ..backends.open_backend import open_backend",
        "def late():\n    from ..backends import open_backend",
        "import vlmedge.runtime.backends.open_backend",
        "from vlmedge.runtime.backends import open_backend",
    ],
)
def test_the_reader_of_rooms_knows_every_form(code, tmp_path, monkeypatch):
    """An arrow upward is seen, whichever way it's written."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name in ("runtime/inputs/__init__.py", "runtime/backends/open_backend.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    path = tmp_path / "runtime/inputs/images.py"
    path.write_text(code)
    ((_, file),) = list_imports(path)
    assert FLOORS[find_room(file)] > FLOORS[find_room(path)]


def list_rooms() -> list[Path]:
    """The `__init__.py` of every room: each folder with code below a layer."""
    return [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*/**/__init__.py"))]


@pytest.mark.parametrize("path", list_rooms(), ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_room_says_what_it_is_for_and_names_files_that_are_there(path):
    text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    assert 5 <= len(text.splitlines()) <= 15
    named = re.findall(r"`([\w./*]+(?:\.(?:py|sh|css)|/))`", text)
    assert named, "no file to read first"
    for name in named:
        assert any(next(base.glob(name), None) for base in (path.parent, ROOT)), name
