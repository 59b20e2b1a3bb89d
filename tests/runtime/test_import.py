import subprocess
import sys

import vlmedge.runtime

HEAVY = (
    "torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tokenizers", "jinja2",
    "typer", "rich",
)  # fmt: skip


def list_modules(code):
    code += "\nimport sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_importing_the_runtime_loads_nothing_heavy():
    assert not list_modules("import vlmedge.runtime") & set(HEAVY)


def test_options_and_errors_are_there_without_an_engine():
    code = "from vlmedge.runtime import GenerationOptions, Answer, BundleError"
    assert not list_modules(code) & set(HEAVY)


def test_a_model_needs_neither_torch_nor_transformers_nor_onnx():
    loaded = list_modules(
        "from vlmedge.runtime import Model; import vlmedge.runtime.backends.ort.backend"
    )
    assert not loaded & {"torch", "transformers", "onnx", "onnx_ir"}


def test_every_public_name_is_there():
    for name in vlmedge.runtime.__all__:
        found = getattr(vlmedge.runtime, name)
        assert getattr(found, "__name__", name) == name or not isinstance(found, type)
        assert name in dir(vlmedge.runtime)
    assert not hasattr(vlmedge.runtime, "nothing_of_that_name")
