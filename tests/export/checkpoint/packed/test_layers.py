"""Packed checkpoints: every format is read back to the numbers that were packed, or refused."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.packed.matrix import dequantize

FORMATS = [
    "awq", "awq-gemv", "gptq", "gptq-asymmetric", "gptq-v2", "gptq-act-order", "gptq-int8",
    "gptq-channel", "ct-w4a16", "ct-w4a16-asymmetric", "ct-w4a16-act-order", "ct-w8a16", "ct-w8a8",
    "ct-w8a8-static", "ct-w8a8-asymmetric", "ct-fp8-dynamic", "ct-fp8-static",
]  # fmt: skip
SOURCE = "samples/reader"
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def packed(packers, tmp_path_factory, request):
    """(format) -> its folder, which no test changes, and the numbers that are in it."""
    source, made = request.config.rootpath / SOURCE, {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("packed") / name
            made[name] = folder, packers.pack_checkpoint(source, folder, name)
        return made[name]

    return make


def test_every_format_of_the_writer_is_tried(packers):
    assert set(FORMATS) == set(packers.FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_packed_is_read(packed, packers, name):
    folder, layers = packed(name)
    checkpoint = open_checkpoint(folder)
    form = packers.FORMATS[name]
    assert set(checkpoint.packed) == set(layers)
    assert f"{LAYER}.weight" not in checkpoint.tensors
    assert "model.layers.1.self_attn.q_proj.bias" in checkpoint.tensors
    for layer, matrix in checkpoint.packed.items():
        made, values = layers[layer], matrix.read()
        assert matrix.shape == made.codes.shape
        assert matrix.symmetric == (form.symmetric or form.kind == "float-quantized")
        assert (matrix.bits, matrix.activations) == (form.bits, form.activations)
        np.testing.assert_array_equal(values.codes, made.codes)
        np.testing.assert_array_equal(values.scales, made.scales)
        assert (values.zero_points is None) == (made.zero_points is None)
        if made.zero_points is not None:
            np.testing.assert_array_equal(values.zero_points, made.zero_points)
        assert (matrix.order is None) == (made.order is None)
        if made.order is not None:
            np.testing.assert_array_equal(matrix.order, made.order)
        assert values.input_scale == made.input_scale
        # One product of two exactly held numbers is rounded once, here as there
        np.testing.assert_array_equal(dequantize(matrix, values), made.weight)


def spoil(packed, tmp_path, name, tensors=None, config=None):
    """A copy of a packed checkpoint after its tensors and its quantization_config were changed."""
    folder, _ = packed(name)
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    if tensors:
        held = load_file(folder / "model.safetensors")
        tensors(held)
        (tmp_path / "model.safetensors").unlink()
        save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    if config:
        whole = json.loads((folder / "config.json").read_text())
        config(whole["quantization_config"])
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(whole))
    return tmp_path


def read_all(folder):
    for matrix in open_checkpoint(folder).packed.values():
        matrix.read()


def put(part, change):
    def edit(tensors):
        name = f"{LAYER}.{part}"
        value = change(tensors.pop(name).clone())
        if value is not None:
            tensors[name] = value.contiguous()

    return edit


def at_start(number):
    def change(tensor):
        tensor.view(-1)[0] = number
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "part", "change", "message"),
    [
        ("awq", "qzeros", lambda t: None, "has no qzeros"),
        ("awq", "scales", lambda t: t[1:], "scales is .*, needed"),
        ("awq", "qweight", lambda t: t.to(torch.int64), "qweight is I64, needed I32"),
        ("awq", "qweight", lambda t: t[:32], "needed"),
        ("awq", "scales", at_start(float("nan")), "a scale is nan"),
        ("awq", "scales", at_start(0.0), "a scale is 0"),
        ("gptq", "scales", at_start(-0.5), "a scale is -0.5"),
        ("gptq", "scales", at_start(float("inf")), "a scale is inf"),
        ("gptq", "g_idx", at_start(10**6), "has groups 0 to 1000000"),
        ("gptq", "g_idx", at_start(-1), "has groups -1"),
        ("gptq", "g_idx", at_start(3), "group 0 has 31 inputs"),
        ("gptq-act-order", "g_idx", lambda t: None, "has no g_idx"),
        ("ct-w4a16", "weight_shape", at_start(10**9), "weight_packed is"),
        ("ct-w4a16", "weight_packed", lambda t: t[:, 1:], "weight_packed is"),
        ("ct-fp8-static", "input_scale", lambda t: None, "has no input_scale"),
        ("ct-fp8-static", "input_scale", at_start(0.0), "input_scale is 0"),
        ("ct-fp8-dynamic", "weight", lambda t: t.view(torch.int8), "weight is I8"),
    ],
)
def test_a_damaged_layer_is_named(packed, tmp_path, name, part, change, message):
    folder = spoil(packed, tmp_path, name, tensors=put(part, change))
    with pytest.raises(ValueError, match=f"{LAYER}.*{message}|{message}.*{LAYER}"):
        read_all(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("awq", {"quant_method": "bitsandbytes"}, "packed by 'bitsandbytes'.*float"),
        ("awq", {"quant_method": "hqq"}, "packed by 'hqq'; only AWQ"),
        ("awq", {"version": "marlin"}, "version is 'marlin'"),
        ("awq", {"bits": 8}, "bits is 8, only 4"),
        ("awq", {"group_size": 100}, "no multiple of group_size 100"),
        ("awq", {"group_size": 64}, "needed .* by the other tensors"),
        ("awq", {"modules_to_not_convert": ["mlp.down_proj"]}, "leaves it float"),
        ("awq", {"modules_to_not_convert": ["("]}, "no regular expression"),
        ("awq", {"modules_to_not_convert": ["(a|a|.)*$x"]}, ""),
        ("gptq", {"bits": 3}, "bits is 3, only 4 and 8"),
        ("gptq", {"bits": 8}, "needed"),
        ("gptq", {"checkpoint_format": "marlin"}, "'marlin', only gptq"),
        ("gptq", {"dynamic": {"-:.*down_proj": {}}}, "leaves it float"),
        ("gptq", {"dynamic": {".*down_proj": {"bits": 8}}}, "down_proj.*needed"),
        ("gptq", {"modules_in_block_to_quantize": [["mlp.up_proj"]]}, "leaves it float"),
        ("ct-w4a16", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("ct-w4a16", {"format": "marlin-24"}, "'marlin-24', needed one of"),
        ("ct-w4a16", {"format": "nvfp4-pack-quantized"}, "needed one of"),
        ("ct-w4a16", {"sparsity_config": {"format": "sparse-24"}}, "sparsity is not read"),
        ("ct-w4a16", {"quantization_status": "frozen"}, "only 'compressed'"),
        ("ct-w4a16", {"ignore": ["re:.*down_proj"]}, "leaves it float"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(packed, tmp_path, name, changes, message):
    folder = spoil(packed, tmp_path, name, config=lambda config: config.update(changes))
    if not message:  # a costly pattern ends, either way
        open_checkpoint(folder)
        return
    with pytest.raises(ValueError, match=message) as error:
        read_all(folder)
    assert "\n" not in str(error.value)


def test_packed_tensors_without_a_configuration_are_named(packed, packers, tmp_path):
    folder = spoil(packed, tmp_path, "gptq", config=lambda config: None)
    packers.edit_config(folder, lambda config: config.pop("quantization_config"))
    with pytest.raises(ValueError, match=r"but config\.json has no quantization_config"):
        open_checkpoint(folder)


def test_a_configuration_in_the_quantizers_own_file_is_read(packed, packers, tmp_path):
    folder = spoil(packed, tmp_path, "gptq", config=lambda config: None)
    found = []
    packers.edit_config(folder, lambda config: found.append(config.pop("quantization_config")))
    del found[0]["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(found[0]))
    assert open_checkpoint(folder).packed[LAYER].method == "gptq"


def test_names_of_transformers_5_are_read_as_the_hubs(packed, tmp_path):
    def rename(tensors):
        for name in list(tensors):
            new = name.replace("visual.", "model.visual.", 1)
            if name.startswith("model."):
                new = name.replace("model.", "model.language_model.", 1)
            tensors[new] = tensors.pop(name)

    folder = spoil(packed, tmp_path, "gptq", tensors=rename)
    assert set(open_checkpoint(folder).packed) == set(open_checkpoint(packed("gptq")[0]).packed)


def test_zero_points_of_gptq_borrow_from_their_neighbours(packed, tmp_path):
    """A zero point of 0 less 1, over whole words as GPTQModel saves them."""
    zeros = torch.tensor([0x76543210, 0x00000000], dtype=torch.int64)
    words = ((zeros - 0x11111111) & 0xFFFFFFFF).to(torch.int64)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

    def change(tensor):
        tensor[0, :2] = words
        return tensor

    folder = spoil(packed, tmp_path, "gptq", tensors=put("qzeros", change))
    matrix = open_checkpoint(folder).packed[LAYER]
    assert not matrix.symmetric
    values = matrix.read().zero_points
    assert values is not None
    assert values[:16, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7] + [0] * 8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats(allow_nan=False, width=16)
    | st.sampled_from(["", "re:.*", "re:(", "group", "tensor", "float", "gptq", "x" * 200]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)  # fmt: skip


@pytest.mark.parametrize("name", ["awq", "gptq", "ct-w4a16", "ct-w8a8-static"])
def test_no_configuration_ends_in_a_traceback(packed, name):
    from vlmedge.export.checkpoint.packed.config import read_quantization

    folder, _ = packed(name)
    whole = json.loads((folder / "config.json").read_text())

    def paths(value, path=()):
        yield path
        if isinstance(value, dict):
            for key in value:
                yield from paths(value[key], (*path, key))

    @settings(max_examples=150, database=None)
    @given(st.sampled_from(list(paths(whole["quantization_config"]))), JSON)
    def change_one(path, value):
        config = json.loads(json.dumps(whole))
        place, key = config, "quantization_config"
        for step in path:
            place, key = place[key], step
        place[key] = value
        try:
            found = read_quantization(folder, config)
            if found is not None:
                found.scheme_of(LAYER)
        except ValueError as error:
            message = str(error)
        else:
            return
        assert "\n" not in message

    change_one()
