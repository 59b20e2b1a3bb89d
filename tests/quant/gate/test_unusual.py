"""A planted fault is named, and nothing else: by kind, place and precision."""

import re
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image
from plant_faults import FAULTS, plant_fault

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.quant.compare.diff import compare_layers, trace_reference
from vlmedge.quant.compare.findings import LayerFinding
from vlmedge.quant.compare.layer_rows import RowShelf
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.compare.shelf import ArrayShelf
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.unusual import describe_layer, find_unusual
from vlmedge.quant.graph.files import locate
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe

BLOCK, LAYER = "visual.blocks.2", "model.layers.1"
QKV = f"{LAYER}.self_attn.q_proj+k_proj+v_proj"
GATE_UP = f"{LAYER}.mlp.gate_proj+up_proj"
DIM, HIDDEN, MLP, CACHED = 64, 128, 192, 64  # of the model below

# Tensor, layer that holds it, kind of fault, amount, rows, what the text has to name
SCALED = [
    (f"{LAYER}.mlp.up_proj", GATE_UP, "scale", 4.0, slice(None), "its up_proj -9"),
    (f"{LAYER}.mlp.gate_proj", GATE_UP, "scale", 4.0, slice(None), "its gate_proj -9"),
    (f"{LAYER}.self_attn.v_proj", QKV, "scale", 1.5, slice(None), "its v_proj "),
    (f"{BLOCK}.attn.qkv", f"{BLOCK}.attn.qkv", "scale", 3.0, slice(128, 192), "its v -"),
    (f"{LAYER}.mlp.up_proj", GATE_UP, "scale", 4.0, slice(7, 8), "row 7 of up_proj -"),
    (f"{BLOCK}.attn.qkv", f"{BLOCK}.attn.qkv", "scale", 3.0, slice(130, 131), "row 2 of v -"),
]
PLACES = {
    f"{BLOCK}.attn.qkv": f"{BLOCK}.attn.qkv",
    f"{BLOCK}.attn.proj": f"{BLOCK}.attn.proj",
    f"{BLOCK}.mlp.fc1": f"{BLOCK}.mlp.fc1",
    f"{BLOCK}.mlp.fc2": f"{BLOCK}.mlp.fc2",
    "visual.merger.mlp.0": "visual.merger.mlp.0",
    "visual.merger.mlp.2": "visual.merger.mlp.2",
    f"{LAYER}.self_attn.q_proj": QKV,
    f"{LAYER}.self_attn.k_proj": QKV,
    f"{LAYER}.self_attn.v_proj": QKV,
    f"{LAYER}.self_attn.o_proj": f"{LAYER}.self_attn.o_proj",
    f"{LAYER}.mlp.gate_proj": GATE_UP,
    f"{LAYER}.mlp.up_proj": GATE_UP,
    f"{LAYER}.mlp.down_proj": f"{LAYER}.mlp.down_proj",
    "lm_head": "lm_head",
}
BAD_ROW = [(t, place, "bad-row", 0.0, slice(5, None), "row 5") for t, place in PLACES.items()]
SWAPPED = [
    (t, place, "swap-rows", 0.0, slice(3, 20), r"row (3|19)( of \w+)? -?\d")
    for t, place in PLACES.items()
]
NOISE = {
    # dB under the weights, by place in turn: a float layer is sound above 80 dB, one of 8 bits at
    # 40, one of 4 bits at 20, and STICKS_OUT_DB apart is what can be told
    "float": [10.0, 25.0, 40.0, 55.0, 70.0],
    "int8": [10.0, 20.0, 25.0, 30.0],
    "int4": [8.0, 10.0],
}
RECIPE = """name = "test"
[vision]
format = "{0}-weight"
block_size = 32
[decoder]
format = "{0}-weight"
block_size = 32
[lm_head]
format = "{0}-weight"
block_size = 32
"""
# Migrations into norms and rows: smoothed static INT8, AWQ with GPTQ
MIGRATED = {
    "static": 'name = "static"\n[vision]\nformat = "int8"\nsmooth = 0.5\n'
    '[decoder]\nformat = "int8"\nsmooth = 0.5\n[lm_head]\nformat = "int8"\n',
    "awq": 'name = "awq"\n[vision]\nformat = "int8"\nmethod = "gptq"\n'
    '[decoder]\nformat = "int4-weight"\nmethod = "awq+gptq"\nblock_size = 64\n'
    '[lm_head]\nformat = "int8-weight"\nblock_size = 64\n',
}


def list_faults(format):
    """Every place has each kind of fault in one of the formats, scaled rows in all."""
    order = list(NOISE)
    noise = NOISE[format]
    noisy = [
        (t, place, "noise", noise[i % len(noise)], slice(None), "")
        for i, (t, place) in enumerate(PLACES.items())
    ]
    kinds = [BAD_ROW, SWAPPED, noisy]
    first = order.index(format)
    rest = [kinds[(i + first) % 3][i] for i in range(len(PLACES))]
    return SCALED + rest


FAULTY = [(format, *fault) for format in NOISE for fault in list_faults(format)]


def make_examples():
    random = np.random.default_rng(3)
    sizes = {"wide": (84, 56), "tall": (56, 112)}
    pictures = {
        name: Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8))
        for name, (w, h) in sizes.items()
    }
    text = {"type": "text", "text": "What?"}
    parts = {n: [{"type": "image", "image": p}, text] for n, p in pictures.items()}
    parts["text"] = [text]
    return [Example(n, ({"role": "user", "content": content},)) for n, content in parts.items()]


EXAMPLES = make_examples()
DATA = DataSet("pictures", "0" * 64, tuple(EXAMPLES), {})


def measure(bundle, reference):
    ours, theirs = LayeredBundle(bundle, 1), LayeredBundle(reference, 1)
    with ArrayShelf() as arrays:
        traced = trace_reference(ours, theirs, EXAMPLES, RowShelf(arrays), lambda step: None)
        return compare_layers(ours, traced, lambda step: None)


def name_unusual(bundle, reference):
    return {f.layer: describe_layer(f) for f in find_unusual(measure(bundle, reference))}


@pytest.fixture(scope="module")
def size(checkpoint_script):
    return checkpoint_script.Size(
        HIDDEN, 4, 4, 2, MLP, 320, False, (4, 6, 6), depth=4, vision_dim=DIM, vision_heads=2
    )


@pytest.fixture(scope="module")
def sound(make_bundle, size):
    """Checkpoint and float bundle of a random model with a head of its own."""
    return make_bundle(size, "fp32", dtype="F32")


@pytest.fixture(scope="module")
def quantized(sound, tmp_path_factory):
    """quantized(recipe): a sound bundle of it."""
    made = {}

    def make(text):
        if text not in made:
            recipe = parse_recipe(text, "test") if "\n" in text else open_recipe(text)
            target = tmp_path_factory.mktemp("sound") / "bundle"
            data = DATA if recipe.needs_data else None  # another's ranges would be unusual
            quantize_bundle(sound.bundle, target, recipe, data, num_threads=1)
            made[text] = target
        return made[text]

    return make


@pytest.mark.parametrize("fault", FAULTY, ids=lambda f: "-".join(map(str, f[:4:2])) + f[1])
def test_exactly_the_planted_layer_is_named(sound, tmp_path, fault):
    format, tensor, layer, kind, amount, rows, words = fault
    checkpoint = plant_fault(
        sound.checkpoint, tmp_path / "checkpoint", f"{tensor}.weight", kind, amount, rows
    )
    bundle = tmp_path / "float"
    export_checkpoint(checkpoint, bundle, ExportOptions("fp32"))
    if format != "float":
        recipe = parse_recipe(RECIPE.format(format), "test")
        quantize_bundle(bundle, tmp_path / format, recipe, num_threads=1)
        bundle = tmp_path / format
    found = name_unusual(bundle, sound.bundle)
    assert list(found) == [layer]
    assert re.search(words, found[layer])


@pytest.mark.parametrize("recipe", ["float", "accurate", "thor", *MIGRATED, "int8", "int4"])
def test_nothing_is_unusual_about_a_sound_bundle(sound, quantized, recipe):
    if recipe == "float":
        assert name_unusual(sound.bundle, sound.bundle) == {}
        return
    text = RECIPE.format(recipe) if recipe in NOISE else MIGRATED.get(recipe, recipe)
    assert name_unusual(quantized(text), sound.bundle) == {}


def scale_rows(bundle, target, layer, rows, factor):
    """A copy of a quantized bundle with the scales of some rows multiplied."""
    shutil.copytree(bundle, target)
    ours = LayeredBundle(target, 1)
    found = ours.layers[layer]
    model = ours.models["vision" if layer.startswith("visual.") else "decoder"]
    node = model.graph.node[found.reader]
    name = node.input[2 if node.op_type == "MatMulNBits" else 1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    file, offset, length = locate(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with (target / file).open("r+b") as data:
        data.seek(offset)
        scales = np.frombuffer(data.read(length), dtype).copy()
        scales.reshape(found.linear.out_features, -1)[rows] *= dtype.type(factor)
        data.seek(offset)
        data.write(scales.tobytes())
    return target


@pytest.mark.parametrize("recipe", MIGRATED)
@pytest.mark.parametrize(
    ("layer", "rows", "factor"),
    [
        (GATE_UP, slice(MLP, None), 4.0),
        (QKV, slice(-CACHED, None), 1.5),
        (f"{BLOCK}.attn.qkv", slice(2 * DIM, None), 3.0),
        (GATE_UP, slice(MLP + 8, MLP + 9), 4.0),
        (QKV, slice(-CACHED, 1 - CACHED), 4.0),
        (f"{LAYER}.mlp.down_proj", slice(None), 1.5),
        (f"{LAYER}.self_attn.o_proj", slice(None), 2.0),
        (f"{BLOCK}.attn.proj", slice(None), 2.0),
    ],
)
def test_scaled_rows_on_top_of_migrations_are_named(
    sound, quantized, tmp_path, recipe, layer, rows, factor
):
    bundle = scale_rows(quantized(MIGRATED[recipe]), tmp_path / "bundle", layer, rows, factor)
    assert list(name_unusual(bundle, sound.bundle)) == [layer]


def make_layers(values, precision="float32", kind="visual.blocks.{}.mlp.fc2"):
    return tuple(
        LayerFinding(kind.format(i), precision, "448x448", float(value), 20.0)
        for i, value in enumerate(values)
    )


@pytest.mark.parametrize("value", [10, 25, 40, 60, 75])
def test_a_float_layer_is_held_against_float_arithmetic(value):
    sound = make_layers([125, 118, 131, 104, 122])
    bad = make_layers([value], kind="model.layers.{}.mlp.down_proj")
    assert find_unusual((*sound, *bad)) == bad
    assert find_unusual(bad) == bad  # alone as well
    assert find_unusual(sound) == ()


def test_a_reference_in_16_bits_makes_no_float_layer_unusual():
    coarse = make_layers([76, 75, 77, 76, 74])
    assert find_unusual(coarse) == ()
    bad = make_layers([60], kind="model.layers.{}.mlp.down_proj")
    assert find_unusual((*coarse, *bad)) == bad


def test_float_layers_that_are_all_broken_are_all_named():
    assert len(find_unusual(make_layers([40, 41, 39, 40, 42, 40]))) == 6
    assert len(find_unusual(make_layers([30, 31, 29, 30, 32, 30]))) == 6


def test_a_layer_is_held_against_its_like_in_other_blocks():
    """Behind a GELU every block has 8 dB less: usual, until one has less than its like."""
    layers = make_layers([42, 41, 43, 42, 41, 43, 42, 41], "int8 static", "visual.blocks.{}.fc1")
    layers += make_layers([34, 33, 35, 34], "int8 static")
    assert find_unusual(layers) == ()
    worse = make_layers([34, 33, 35, 34, 25], "int8 static")[4:]
    assert find_unusual((*layers, *worse)) == worse


def test_an_8_bit_head_beside_4_bit_layers_is_held_against_8_bits():
    layers = make_layers([20, 21, 19, 20, 22, 20], "int4 block 64")
    head = make_layers([25], "int8 block 64", "lm_head")
    assert find_unusual((*layers, *head)) == head
    sound = make_layers([38], "int8 block 64", "lm_head")
    assert find_unusual((*layers, *sound)) == ()


def test_a_fault_needs_a_tensor_and_a_kind(sound, tmp_path):
    with pytest.raises(ValueError, match="no tensor nothing"):
        plant_fault(sound.checkpoint, tmp_path / "a", "nothing", "scale")
    with pytest.raises(ValueError, match="needed one of " + ", ".join(FAULTS)):
        plant_fault(sound.checkpoint, tmp_path / "b", "lm_head.weight", "melt")
