"""Packed checkpoints as bundles: the very numbers, transformers' logits, and what is refused.

Weights are compared bit for bit with what the packed numbers mean. Logits: products round their
inputs to 8 bits, measured at most 3 % of the logits' norm against transformers on these weights in
float32 (E4M3: 6 %); a layer with wrong codes, scales or order is off by its whole norm.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.packed.matrix import dequantize
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.planning.devices import find_device
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.sources import open_model
from vlmedge.export.verify.verify import verify_bundle
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.joined_names import split_joined
from vlmedge.quant.graph.layer_nodes import find_layers, read_matrix
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli import main as cli

SAMPLES = Path(__file__).parents[3] / "samples"
CARRIED = (
    *("awq", "awq-gemv", "gptq", "gptq-asymmetric", "gptq-v2", "gptq-act-order", "gptq-int8"),
    *("gptq-channel", "ct-w4a16", "ct-w4a16-asymmetric", "ct-w4a16-act-order", "ct-w8a16"),
    *("ct-w8a8", "ct-w8a8-static", "ct-fp8-dynamic", "ct-fp8-static"),
)
REFUSED = ("ct-w8a8-asymmetric",)
QUESTION = Example("text", ({"role": "user", "content": "What is the total of this receipt?"},))


@pytest.fixture(scope="module")
def pack(packers, tmp_path_factory):
    """pack(format): the sample packed, the floats it means, and its bundle; each made once."""
    made = {}

    def make(name, *, export=True):
        if name not in made:
            folder = tmp_path_factory.mktemp("carried")
            layers = packers.pack_checkpoint(SAMPLES / "reader", folder / "packed", name)
            packers.float_copy(folder / "packed", folder / "float", layers)
            made[name] = folder
        folder = made[name]
        if export and not (folder / "bundle").exists():
            export_checkpoint(folder / "packed", folder / "bundle")
        return folder

    return make


def read_carried(bundle):
    """Layer -> float32[N, K] that the bundle's own initializers mean, joined ones apart."""
    manifest = read_manifest(bundle)
    model = read_graph(bundle, manifest, "decoder")
    found = {}
    names = [e.name for e in manifest.coverage if e.kind == "linear" and e.graph == "decoder"]
    for name, layer in find_layers(model.graph, names).items():
        matrix = read_matrix(model, bundle, layer)
        parts = [part.removesuffix(".weight") for part in split_joined(name)]
        found[name] = (parts, matrix)
    return found


@pytest.mark.parametrize("name", CARRIED)
def test_the_bundle_holds_the_very_weights_that_were_packed(pack, name):
    folder = pack(name)
    packed = dict(open_checkpoint(folder / "packed").packed)
    for parts, matrix in read_carried(folder / "bundle").values():
        if not packed.keys() & set(parts):
            continue
        rows = []
        for part in parts:
            matrix_of_part = packed.pop(part)
            rows.append(dequantize(matrix_of_part, matrix_of_part.read()))
        np.testing.assert_array_equal(matrix, np.concatenate(rows))
    assert not packed


def _round_inputs(model, checkpoint):
    """Let every packed layer of the reference round its input by the checkpoint's own scale."""
    modules = dict(model.named_modules())
    for layer, matrix in open_checkpoint(checkpoint).packed.items():
        scale = float(matrix.read().input_scale)

        def round_input(_module, inputs, scale=scale):
            return ((inputs[0] / scale).round().clamp(-128, 127) * scale,)

        name = layer.replace("model.layers", "model.language_model.layers")
        modules[name].register_forward_pre_hook(round_input)


@pytest.mark.parametrize("name", CARRIED)
def test_logits_are_those_of_transformers_on_the_weights_that_were_packed(pack, name):
    folder = pack(name)
    side = BundleSide(folder / "bundle", 1)
    ids = side._maker.make(QUESTION.messages).input_ids
    seen = side.observe(QUESTION, 4, is_plain=True)
    side.close()
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder / "float", dtype=torch.float32
    ).eval()
    if name == "ct-w8a8-static":  # its input scales are arbitrary and cut inputs off
        _round_inputs(model, folder / "packed")
    tokens = torch.from_numpy(np.concatenate([ids, seen.token_ids[:-1]]))[None]
    with torch.inference_mode():
        needed = model(input_ids=tokens).logits[0, len(ids) - 1 :].numpy()
    error = np.linalg.norm(seen.logits - needed) / np.linalg.norm(needed)
    assert error < (0.1 if "fp8" in name else 0.03)


def test_coverage_says_what_the_checkpoint_had(pack):
    manifest = read_manifest(pack("gptq") / "bundle")
    found = {e.name: (e.precision, e.reason) for e in manifest.coverage if e.kind == "linear"}
    qkv = "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    assert found[qkv] == ("int4 block 32", "as the checkpoint has it")
    assert found["lm_head"][0] == "float32"
    assert found["visual.blocks.0.attn.qkv"] == ("float32", "weights option")


def test_act_order_gathers_inputs_and_asymmetric_codes_have_zero_points(pack):
    ordered = onnx.load(
        pack("gptq-act-order") / "bundle" / "decoder.onnx", load_external_data=False
    )
    assert [node for node in ordered.graph.node if node.name.endswith("/input/Gather")]
    shifted = onnx.load(pack("awq") / "bundle" / "decoder.onnx", load_external_data=False)
    products = [node for node in shifted.graph.node if node.op_type == "MatMulNBits"]
    assert all(node.input[3].endswith(".zero_points") for node in products)
    plain = onnx.load(pack("ct-w4a16") / "bundle" / "decoder.onnx", load_external_data=False)
    products = [node for node in plain.graph.node if node.op_type == "MatMulNBits"]
    assert not any(len(node.input) > 3 and node.input[3] for node in products)


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_not_carried_are_refused_with_the_way_out(pack, name):
    folder = pack(name, export=False)
    with pytest.raises(ValueError, match=r"model\.layers\.0.*not carried over: --requantize"):
        export_checkpoint(folder / "packed", folder / "bundle")
    assert not (folder / "bundle").exists()


@pytest.mark.parametrize("name", ["awq", "gptq-act-order", "ct-w8a8", "ct-fp8-static"])
def test_requantize_takes_packed_layers_as_floats(pack, name, tmp_path):
    folder = pack(name, export=False)
    export_checkpoint(folder / "packed", tmp_path / "a", ExportOptions(requantize=True))
    export_checkpoint(folder / "float", tmp_path / "b")
    got, needed = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert got.files["decoder.onnx.data"] == needed.files["decoder.onnx.data"]
    assert got.coverage[:-1] == needed.coverage[:-1]  # but for the table, which is kept as stored


def test_a_packed_checkpoint_goes_through_the_commands(pack, tmp_path, capsys):
    folder = pack("gptq", export=False)
    assert cli.main(["export", str(folder / "packed"), str(tmp_path / "b")]) == 0
    assert cli.main(["inspect", str(folder / "packed"), "--json"]) == 0
    capsys.readouterr()
    picture = str(SAMPLES / "pictures" / "receipt-0.png")
    args = ["run", str(tmp_path / "b"), "What is the total?", "--image", picture]
    assert cli.main(args) == 0
    assert len(capsys.readouterr().out) > 1
    assert cli.main(["inspect", str(tmp_path / "b"), "--coverage"]) == 0
    assert "as the checkpoint has it" in capsys.readouterr().out
    again = ["export", str(folder / "packed"), str(tmp_path / "c"), "--requantize"]
    assert cli.main([*again, "--weights", "int8"]) == 0
    assert (
        read_manifest(tmp_path / "c")
        .precision["model.layers.0.mlp.up_proj.weight"]
        .startswith("int8")
    )


@pytest.mark.parametrize("name", ["gptq", "awq", "gptq-act-order", "ct-w8a8", "ct-fp8-static"])
def test_the_float_rest_of_a_packed_bundle_can_be_quantized(pack, name, tmp_path, capsys):
    """The official INT4 decoder with an INT8 ViT, in one command."""
    source, target = pack(name) / "bundle", tmp_path / "q"
    data = ["--data", str(SAMPLES / "pictures"), "--limit", "4"]
    assert cli.main(["quantize", str(source), str(target), "--recipe", "orin", *data]) == 0
    capsys.readouterr()
    before, after = read_manifest(source), read_manifest(target)
    words = {e.name: (e.precision, e.reason) for e in after.coverage if e.kind == "linear"}
    assert words["visual.blocks.0.attn.qkv"] == ("int8 static", "recipe")
    assert words["lm_head"][1] == "recipe"
    kept = {e.name for e in before.coverage if e.reason == "as the checkpoint has it"}
    kept -= {"model.embed_tokens"}
    assert kept
    assert {name for name, (_, reason) in words.items() if "checkpoint" in reason} == kept
    old, new = read_carried(source), read_carried(target)
    for layer in kept:
        np.testing.assert_array_equal(new[layer][1], old[layer][1])
    side = BundleSide(target, 1)
    assert len(side.observe(QUESTION, 4, is_plain=True).token_ids) == 4
    side.close()


def test_a_recipe_that_names_a_packed_layer_is_refused(pack, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    pattern = 'name = "r"\n[[layers]]\npattern = "model.layers.0.mlp.*"\nformat = "int8-weight"\n'
    recipe.write_text(pattern)
    source = str(pack("gptq") / "bundle")
    assert cli.main(["quantize", source, str(tmp_path / "q"), "--recipe", str(recipe)]) == 1
    assert "fits no layer" in capsys.readouterr().err


def test_verify_compares_with_the_weights_that_were_packed(pack):
    folder = pack("gptq-act-order")
    report = verify_bundle(
        folder / "packed", folder / "bundle", image_sizes=[(60, 90)], num_tokens=2
    )
    assert report.passed
    wrong = verify_bundle(
        folder / "packed", pack("gptq-channel") / "bundle", image_sizes=[(60, 90)], num_tokens=2
    )
    assert not wrong.passed


@pytest.mark.parametrize("name", ["ct-w4a16", "gptq-act-order", "gptq-int8"])
def test_symmetric_groups_become_tensorrts_blocks(pack, name, tmp_path):
    """The fp32 graph for a target against the bundle, whose products round inputs to 8 bits."""
    bundle = pack(name) / "bundle"
    export_for_target(bundle, tmp_path / "t", LoweringOptions("jetpack-6.2", "fp32", None))
    needed, got = (BundleSide(path, 1) for path in (bundle, tmp_path / "t"))
    a, b = (side.observe(QUESTION, 3, is_plain=True).logits for side in (needed, got))
    assert np.linalg.norm(b - a) / np.linalg.norm(a) < 0.03


def test_zero_points_are_refused_for_tensorrt_with_the_way_out(pack, tmp_path):
    options = LoweringOptions("jetpack-6.2", "fp32", None)
    with pytest.raises(ValueError, match=r"has zero points.*--requantize"):
        export_for_target(pack("awq") / "bundle", tmp_path / "t", options)
    with pytest.raises(ValueError, match="export it to a bundle, then give the bundle"):
        export_for_target(str(pack("awq") / "packed"), tmp_path / "t", options)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_packed_layers_can_be_planned(pack):
    folder = pack("gptq")
    opened = open_model(folder / "bundle")
    assert opened.precision.layers["model.layers.0.mlp.down_proj"] == "int4 block 32"
    record = read_manifest(folder / "bundle").files["decoder.onnx.data"]
    planned = sum(tensor.nbytes for tensor in opened.tensors["decoder"])
    assert record.bytes - 4096 * len(opened.tensors["decoder"]) < planned <= record.bytes
    assert make_setup(opened, find_device("agx-orin-64gb")).table_bytes > 0
    with pytest.raises(ValueError, match="packed, which is not planned yet"):
        open_model(folder / "packed")
