"""What several folders of tests need: seeded random checkpoints, their bundles, the reference."""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import pytest

import vlmedge.runtime  # noqa: F401  # turns ONNX Runtime's telemetry off before a test imports it

# A busy machine is no failure: nothing in the tests is timed
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SCRIPTS = Path(__file__).parents[1] / "scripts"

# What a string of a manifest, a data set or an option may try, by what it aims at. Each that runs
# a command makes a file called "owned" where it runs.
HOSTILE = {
    "line": "x\ntouch owned\n",
    "carriage-return": "x\r\ntouch owned",
    "command": "$(touch owned)",
    "backticks": "`touch owned`",
    "single-quote": "'; touch owned; '",
    "double-quote": '"; touch owned; "',
    "separator": "x; touch owned #",
    "here-document": "x\nEND_OF_TEXT\ntouch owned\n",
    "option": "--help",
    "systemd": "%i %n $HOME ${PATH}",
    "script": "</script><script>alert(1)</script>",
    "markup": "<img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)',
    "cdata": "]]><x/>",
    "entity": "&amp;&#x0;&nothing;",
    "template": "{{ 7 * 7 }}{% raw %}",
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "c1": "\x9b31m",
    "right-to-left": "safe\u202etxt.sh",
    "isolate": "\u2066x\u2069",
    "line-separator": "x\u2028touch owned",
    "nul": "x\0touch owned",
    "surrogate": "x\ud800y",
    "long": "x" * 10_000,
}
# Those that no manifest may hold anywhere; the rest is text like any other, to be quoted.
HOSTILE_CONTROLS = [
    "line",
    "carriage-return",
    "here-document",
    "escape",
    "c1",
    "right-to-left",
    "isolate",
    "line-separator",
    "nul",
    "surrogate",
]


def pytest_generate_tests(metafunc):
    """A test with an argument `hostile` or `hostile_control` runs once for each such string."""
    if "hostile" in metafunc.fixturenames:
        metafunc.parametrize("hostile", list(HOSTILE.values()), ids=list(HOSTILE))
    if "hostile_control" in metafunc.fixturenames:
        values = [HOSTILE[name] for name in HOSTILE_CONTROLS]
        metafunc.parametrize("hostile_control", values, ids=HOSTILE_CONTROLS)


def load_script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    return load_module(SCRIPTS / f"{name}.py")


def load_module(path: Path) -> ModuleType:
    """A file that is in no package as a module named by its stem."""
    name = path.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def edit_manifest():
    """edit_manifest(bundle, change): change the JSON of BUNDLE/manifest.json in place, and seal it.

    `change` gets the parsed object and changes it, or returns another one.
    """
    from vlmedge.runtime.bundle.manifest_seal import seal_manifest

    def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        path = Path(bundle) / "manifest.json"
        raw = json.loads(path.read_text(encoding="utf-8"))
        changed = change(raw)
        raw = changed if isinstance(changed, dict) else raw
        path.unlink()  # it may be a hard link to another bundle's
        path.write_text(seal_manifest(raw), encoding="utf-8")

    return edit


@pytest.fixture(scope="session")
def renew_records(edit_manifest):
    """renew_records(bundle): sizes and hashes of the files that are there, as if exported so."""

    def renew(bundle: Path) -> None:
        def change(raw):
            for name, record in raw["files"].items():
                data = (Path(bundle) / name).read_bytes()
                record |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        edit_manifest(bundle, change)

    return renew


@pytest.fixture(scope="session")
def checkpoint_script():
    """scripts/make_checkpoint.py: `make_checkpoint`, `Size`, `SIZES`."""
    return load_script("make_checkpoint")


@pytest.fixture(scope="session")
def packers() -> ModuleType:
    """tests/export/checkpoint/packers.py: packed checkpoints from float ones, see its head."""
    return load_module(Path(__file__).parent / "export" / "checkpoint" / "packed" / "packers.py")


@pytest.fixture(scope="session")
def make_bundle(checkpoint_script, tmp_path_factory):
    """Checkpoint and bundle of a size and weight format; each is made once a session."""
    from vlmedge.export.exporter import export_checkpoint
    from vlmedge.export.graphs.options import ExportOptions

    made = {}

    def make(size="tiny", weights="fp32", *, seed=0, dtype="BF16"):
        source = (size, seed, dtype)
        if source not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
            made[source] = checkpoint_script.make_checkpoint(folder, size, seed, dtype=dtype)
        if (*source, weights) not in made:
            bundle = tmp_path_factory.mktemp("bundle") / weights
            export_checkpoint(made[source], bundle, ExportOptions(weights))
            made[(*source, weights)] = bundle
        return SimpleNamespace(checkpoint=made[source], bundle=made[(*source, weights)])

    return make


@pytest.fixture(scope="session")
def load_reference():
    """Checkpoint folder -> transformers' model in float32, greedy and without an end."""
    import torch
    from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other

    def load(checkpoint):
        model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        model.generation_config = GenerationConfig(
            do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        return model.eval()

    return load
