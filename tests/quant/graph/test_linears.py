"""The linear layers of a float bundle, against the checkpoint it was made from."""

import shutil

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.linears import GraphWeights, list_attentions, list_linears
from vlmedge.runtime import BundleError
from vlmedge.runtime.bundle.manifest_file import read_manifest

BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYER = (
    "self_attn.q_proj+k_proj+v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj+up_proj",
    "mlp.down_proj",
)
NAMES = {
    "vision": [
        *(f"visual.blocks.{i}.{name}" for i in range(2) for name in BLOCK),
        "visual.merger.mlp.0",
        "visual.merger.mlp.2",
    ],
    "decoder": [*(f"model.layers.{i}.{name}" for i in range(2) for name in LAYER), "lm_head"],
}


def read_linears(bundle, graph, *, check_files=True):
    model = read_graph(bundle, read_manifest(bundle, check_files=check_files), graph)
    return list_linears(model.graph), GraphWeights(bundle, model)


@pytest.fixture(scope="module")
def read_tensor():
    """Checkpoint folder, name -> float32, read by safetensors' own reader."""

    def read(checkpoint, name):
        for path in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                if name in file.keys():  # noqa: SIM118  (no mapping)
                    return file.get_tensor(name).float().numpy()
        raise KeyError(name)

    return read


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", ["vision", "vision_video", "decoder"])
def test_every_layer_is_found_by_its_checkpoint_name_in_the_order_they_run(
    make_bundle, weights, graph
):
    linears, _ = read_linears(make_bundle("tiny", weights).bundle, graph)
    assert [linear.name for linear in linears] == NAMES[graph.removesuffix("_video")]


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_they_are_the_linears_the_manifest_lists(make_bundle, size):
    bundle = make_bundle(size).bundle
    for graph in ("vision", "vision_video", "decoder"):
        listed = {
            entry.name
            for entry in read_manifest(bundle).coverage
            if entry.kind == "linear" and entry.graph == graph and "patch_embed" not in entry.name
        }
        assert {linear.name for linear in read_linears(bundle, graph)[0]} == listed


@pytest.mark.parametrize(("size", "weights"), [("tiny", "fp32"), ("tiny-7b", "fp16")])
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_matrices_and_biases_are_the_checkpoints(make_bundle, read_tensor, size, weights, graph):
    made = make_bundle(size, weights)
    linears, stored = read_linears(made.bundle, graph)
    dtype = np.float16 if weights == "fp16" else np.float32
    for linear in linears:
        prefix, _, parts = linear.name.rpartition(".")
        names = [f"{prefix}.{part}".removeprefix(".") for part in parts.split("+")]
        if names == ["lm_head"] and size == "tiny":
            names = ["model.embed_tokens"]  # tied
        rows = [read_tensor(made.checkpoint, f"{name}.weight") for name in names]
        matrix = np.concatenate(rows).astype(dtype)
        np.testing.assert_array_equal(stored.read(linear.weight), matrix)
        assert (linear.out_features, linear.in_features) == matrix.shape
        if linear.bias is not None:
            bias = np.concatenate([read_tensor(made.checkpoint, f"{name}.bias") for name in names])
            np.testing.assert_array_equal(stored.read(linear.bias), bias)
    biased = {linear.name for linear in linears if linear.bias}
    expected = {n for n in NAMES[graph] if graph == "vision" or "q_proj" in n}
    if size == "tiny":
        assert biased == expected


def test_a_layer_knows_its_nodes_surroundings(make_bundle):
    bundle = make_bundle("tiny").bundle
    model = read_graph(bundle, read_manifest(bundle), "decoder")
    for linear in list_linears(model.graph):
        (node,) = (node for node in model.graph.node if node.name == linear.node)
        assert (node.input[0], node.output[0]) == (linear.input, linear.output)
        assert node.name.startswith(linear.prefix + "/")
        layer = linear.name.split(".")[2] if linear.name.startswith("model.") else None
        assert linear.stage == (f"model.layers.{layer}" if layer else "head")


@pytest.mark.parametrize("graph", ["vision", "vision_video", "decoder"])
def test_attentions_are_named_as_the_manifest_names_them(make_bundle, graph):
    bundle = make_bundle("tiny").bundle
    manifest = read_manifest(bundle)
    listed = [e.name for e in manifest.coverage if e.kind == "attention" and e.graph == graph]
    assert list(list_attentions(read_graph(bundle, manifest, graph).graph)) == listed


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_bundle_exported_with_packed_weights_is_refused(make_bundle, weights):
    with pytest.raises(BundleError, match="quantized already"):
        read_linears(make_bundle("tiny", weights).bundle, "decoder")


@pytest.mark.parametrize("preset", ["cpu", "thor"])
def test_a_quantized_bundle_is_refused(quantize, preset):
    with pytest.raises(BundleError, match="quantized already"):
        read_linears(quantize(preset).bundle, "vision")


def test_a_short_data_file_is_told(make_bundle, tmp_path):
    bundle = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle")
    with (bundle / "decoder.onnx.data").open("r+b") as file:
        file.truncate(100)
    linears, weights = read_linears(bundle, "decoder", check_files=False)
    with pytest.raises(BundleError, match=r"ends before lm_head\.weight"):
        weights.read("lm_head.weight")
    assert linears[-1].weight == "lm_head.weight"


def test_a_damaged_graph_is_told(make_bundle, tmp_path, renew_records):
    bundle = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle")
    path = bundle / "vision.onnx"
    manifest = read_manifest(bundle)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"vision\.onnx is damaged"):
        read_graph(bundle, manifest, "vision")
    renew_records(bundle)  # what its record says, and yet no graph
    with pytest.raises(BundleError, match=r"vision\.onnx is damaged"):
        read_graph(bundle, read_manifest(bundle), "vision")
    onnx.save(onnx.ModelProto(), path)
    renew_records(bundle)
    assert list_linears(read_graph(bundle, read_manifest(bundle), "vision").graph) == ()


@pytest.mark.parametrize("location", ["../outside", "/etc/hostname", "", "other.data"])
def test_weights_are_read_from_files_of_the_bundle_only(
    make_bundle, tmp_path, renew_records, location
):
    bundle = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle")
    path = bundle / "vision.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == "location").value = location
    onnx.save(model, path)
    renew_records(bundle)
    with pytest.raises(BundleError, match="the manifest has no record"):
        read_graph(bundle, read_manifest(bundle), "vision")
