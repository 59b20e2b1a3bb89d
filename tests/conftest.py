"""What several folders of tests need: seeded random checkpoints, their bundles, the reference."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import pytest

# A busy machine is no failure: nothing in the tests is timed
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def edit_manifest():
    """edit_manifest(bundle, change): change the JSON of BUNDLE/manifest.json in place.

    `change` gets the parsed object and changes it, or returns another one.
    """

    def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        path = Path(bundle) / "manifest.json"
        raw = json.loads(path.read_text(encoding="utf-8"))
        changed = change(raw)
        raw = changed if isinstance(changed, dict) else raw
        path.unlink()  # it may be a hard link to another bundle's
        path.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")

    return edit


@pytest.fixture(scope="session")
def checkpoint_script():
    """scripts/make_checkpoint.py: `make_checkpoint`, `Size`, `SIZES`."""
    return load_script("make_checkpoint")


@pytest.fixture(scope="session")
def make_bundle(checkpoint_script, tmp_path_factory):
    """Checkpoint and bundle of a size and weight format; each is made once a session."""
    from vlmedge.export.exporter import export_checkpoint
    from vlmedge.export.options import ExportOptions

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
