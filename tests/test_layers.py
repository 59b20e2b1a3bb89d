"""export -> quant -> runtime, never back; and nothing heavier than each of them needs."""

import ast
import json
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
