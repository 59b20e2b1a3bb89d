"""A tiny model quantized by every kind of recipe, and graphs for TensorRT made of it."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from vlmedge.export.graphs.data_file import DataFile
from vlmedge.export.lowering.context import Lowering
from vlmedge.export.lowering.emitter import Emitter
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.graph import lower_graph
from vlmedge.export.lowering.initializers import Initializers
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.lowering.targets import find_target
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.preset_names import list_presets
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe

CONTEXT = 48
# Rows of 128 and 192 weights, which hold whole blocks of 64; of 160, which hold blocks of 32; of
# 48, which hold blocks of 16 only.
WIDTHS = {
    "hidden_size": 128,
    "mlp_size": 160,
    "mrope_section": (4, 6, 6),
    "vision_dim": 48,
    "vision_heads": 2,
}
WEIGHTS = ("fp32", "fp16", "int8", "int4")  # of bundles that no recipe made
# What the presets don't have: FP8 in the attentions, standard operators for blocks, scales of both
# signs at 4 bits, blocks that only TensorRT-RTX takes.
RECIPES = {
    "fp8-attention": """
name = "fp8-attention"
[vision]
format = "fp8"
smooth = "off"
[attention]
vision = "fp8"
""",
    "qdq": """
name = "qdq"
[vision]
format = "int8-weight"
block_size = 64
layout = "qdq"
[decoder]
format = "int4-weight"
block_size = 128
layout = "qdq"
[embedding]
format = "int8"
""",
    "signed": """
name = "signed"
[vision]
format = "int4-weight"
block_size = 128
[decoder]
format = "int4-weight"
block_size = 64
[lm_head]
format = "int4-weight"
block_size = 16
""",
}


def use_nearest(recipe):
    """The recipe with the rounding that takes no time."""
    parts = ("vision", "decoder", "lm_head")
    return dataclasses.replace(
        recipe,
        **{name: dataclasses.replace(getattr(recipe, name), method="nearest") for name in parts},
    )


@pytest.fixture(scope="session")
def width(checkpoint_script):
    """The shape of the model."""
    return dataclasses.replace(checkpoint_script.SIZES["tiny"], **WIDTHS)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data set to calibrate with."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for seed, (columns, rows) in enumerate([(90, 60), (56, 84)]):
        levels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{seed}.png")
        lines.append({"id": f"{seed}", "image": f"{seed}.png", "question": "What is it?"})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_data(str(folder))


@pytest.fixture(scope="session")
def get_source(make_bundle, width, pictures, tmp_path_factory):
    """A name of RECIPES, of a preset or of WEIGHTS, or "checkpoint" -> what is to be lowered."""
    made = {}

    def get(name):
        if name == "checkpoint":
            return make_bundle(width).checkpoint
        if name in WEIGHTS:
            return make_bundle(width, name).bundle
        if name not in made:
            text = RECIPES.get(name)
            recipe = use_nearest(parse_recipe(text, name) if text else open_recipe(name))
            made[name] = tmp_path_factory.mktemp("quantized") / name
            data = pictures if recipe.needs_data else None
            source = make_bundle(width).bundle
            quantize_bundle(source, made[name], recipe, data, num_threads=1)
        return made[name]

    return get


@pytest.fixture(scope="session")
def lower(get_source, tmp_path_factory):
    """(name of a source, target, dtype) -> a bundle for it; each is made once."""
    made = {}

    def make(name, target, dtype="fp32"):
        key = (name, target, dtype)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("lowered") / "bundle"
            context = CONTEXT if find_target(target).fused else None
            options = LoweringOptions(target, dtype, context)
            export_for_target(get_source(name), made[key], options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def load_graph():
    """(bundle, graph) -> the ONNX model with its weights."""
    made = {}

    def load(bundle, name):
        if (bundle, name) not in made:
            made[bundle, name] = onnx.load(bundle / f"{name}.onnx")
        copied = onnx.ModelProto()
        copied.CopyFrom(made[bundle, name])
        return copied

    return load


@pytest.fixture(scope="session")
def all_recipes():
    """Names of presets and of RECIPES."""
    return (*list_presets(), *RECIPES)


@pytest.fixture(scope="session")
def run_lowered():
    """run_lowered(nodes, feed, constants, target=..., compute=...) -> outputs of the lowered nodes.

    Inputs and outputs are float32, of as many dimensions as the first input; outputs are those of
    the last node.
    """

    def run(nodes, feed, constants, *, target="jetpack-6.2", compute="float32", head_dim=8):
        declare = onnx.helper.make_tensor_value_info
        outputs = [name for name in nodes[-1].output if name]
        rank = next(iter(feed.values())).ndim
        ends = [
            onnx.helper.make_node("Concat", [name], [f"{name}.end"], f"/{name}/end", axis=0)
            for name in outputs
        ]
        graph = onnx.helper.make_graph(
            [*nodes, *ends],
            "vision",
            [declare(name, 1, [f"{name}.{i}" for i in range(x.ndim)]) for name, x in feed.items()],
            [declare(f"{name}.end", 1, [f"{name}.{i}" for i in range(rank)]) for name in outputs],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        emitter, row = Emitter(compute), find_target(target)
        source = onnx.helper.make_model(graph)
        weights = Initializers(emitter, source, {}, DataFile("none"))
        lowering = Lowering(emitter, weights, row, row.cache, head_dim)
        model = lower_graph("vision", source, lowering, None)
        onnx.checker.check_model(model, full_check=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return dict(zip(outputs, session.run(None, feed), strict=True))

    return run
