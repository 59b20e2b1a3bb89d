"""Models of real size as a config.json alone, and small bundles of every recipe and target."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.planning.model_shapes import make_shapes
from vlmedge.export.planning.sources import open_model
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe


@pytest.fixture(scope="session")
def config_folder(checkpoint_script, tmp_path_factory):
    """(size) -> a folder with config.json and nothing else."""
    made = {}

    def make(size):
        if size not in made:
            folder = tmp_path_factory.mktemp("config") / f"qwen2-vl-{size}"
            folder.mkdir()
            config = checkpoint_script.make_config(checkpoint_script.SIZES[size], "BF16")
            (folder / "config.json").write_text(json.dumps(config))
            made[size] = folder
        return made[size]

    return make


@pytest.fixture(scope="session")
def model(config_folder):
    """(size) -> the planner's model of a config.json alone."""
    return lambda size="2b": open_model(config_folder(size))


@pytest.fixture(scope="session")
def read_shapes():
    """Checkpoint folder -> its shapes."""

    def read(folder):
        spec = read_model_spec(folder)
        return make_shapes(spec.vision, spec.decoder, spec.vision_mlp_size, spec.decoder_mlp_size)

    return read


@pytest.fixture(scope="session")
def quantized(make_bundle, tmp_path_factory):
    """(recipe) -> the tiny checkpoint's bundle quantized by a preset, made once."""
    pictures = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(((56, 84), (112, 56))):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
            pictures / f"{i}.png"
        )
    made = {}

    def make(name):
        if name not in made:
            source = make_bundle("tiny")
            recipe, folder = open_recipe(name), tmp_path_factory.mktemp("quantized") / name
            data = open_data(str(pictures)) if recipe.needs_data else None
            quantize_bundle(source.bundle, folder, recipe, data=data, num_threads=1)
            made[name] = SimpleNamespace(checkpoint=source.checkpoint, bundle=folder)
        return made[name]

    return make


@pytest.fixture(scope="session")
def lowered(make_bundle, quantized, tmp_path_factory):
    """(recipe or "float", target) -> the bundle of TensorRT's graphs, made once."""
    made = {}

    def make(recipe, target):
        if (recipe, target) not in made:
            source = make_bundle("tiny") if recipe == "float" else quantized(recipe)
            folder = tmp_path_factory.mktemp("lowered") / "bundle"
            device = "thor" if target == "jetpack-7.2" else None
            export_for_target(source.bundle, folder, LoweringOptions(target, device=device))
            made[recipe, target] = SimpleNamespace(checkpoint=source.checkpoint, bundle=folder)
        return made[recipe, target]

    return make
