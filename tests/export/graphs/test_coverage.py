"""The coverage that an export writes, against the nodes and weights of the files beside it."""

import numpy as np
import onnx
import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.runtime.bundle.manifest_file import read_manifest

LINEARS = {
    "vision": [
        "visual.patch_embed.proj",
        *(
            f"visual.blocks.{i}.{name}"
            for i in range(2)
            for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        ),
        "visual.merger.mlp.0",
        "visual.merger.mlp.2",
    ],
    "decoder": [
        *(
            f"model.layers.{i}.{name}"
            for i in range(2)
            for name in (
                "self_attn.q_proj+k_proj+v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj+up_proj",
                "mlp.down_proj",
            )
        ),
        "lm_head",
    ],
}
LINEARS["vision_video"] = LINEARS["vision"]
FORMATS = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request, read_only_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / request.param
    export_checkpoint(read_only_checkpoint(), folder, ExportOptions(request.param))
    return folder


def select(bundle, kind, graph):
    coverage = read_manifest(bundle).coverage
    return {e.name: e for e in coverage if (e.kind, e.graph) == (kind, graph)}


@pytest.mark.parametrize("graph", LINEARS)
def test_every_linear_is_there_under_its_checkpoint_layers(bundle, graph):
    assert list(select(bundle, "linear", graph)) == LINEARS[graph]


@pytest.mark.parametrize("graph", LINEARS)
def test_the_precision_of_a_linear_is_that_of_the_weights_in_the_file(bundle, graph):
    model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    casts = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {a.name: a.i for a in node.attribute}
            found.append(f"int{attributes['bits']} block {attributes['block_size']}")
        elif node.op_type == "Gemm":
            stored = types[casts.get(node.input[1], node.input[1])]
            found.append(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(stored)).name)
    assert [entry.precision for entry in select(bundle, "linear", graph).values()] == found


def test_only_what_the_options_decide_is_said_to_be_decided_by_them(bundle):
    for graph in LINEARS:
        for name, entry in select(bundle, "linear", graph).items():
            is_fixed = name == "visual.patch_embed.proj"
            assert (entry.reason == "weights option") != is_fixed


def test_every_attention_and_cache_is_float32(bundle):
    layers = [f"model.layers.{i}.self_attn" for i in range(2)]
    caches = select(bundle, "kv_cache", "decoder")
    products = select(bundle, "attention", "decoder")
    assert list(caches) == [f"{layer}.cache" for layer in layers]
    assert list(products) == [f"{layer}.products" for layer in layers]
    for graph in ("vision", "vision_video"):
        found = select(bundle, "attention", graph)
        assert list(found) == [f"visual.blocks.{i}.attn.products" for i in range(2)]
        products |= found
    assert {entry.precision for entry in (*products.values(), *caches.values())} == {"float32"}
    specs = read_manifest(bundle).graphs["decoder"].inputs
    assert {spec.dtype for spec in specs if spec.name.startswith("past")} == {"float32"}


def test_the_table_is_read_by_the_host_as_the_checkpoint_has_it(bundle):
    (table,) = select(bundle, "table", None).values()
    assert (table.name, table.precision) == ("model.embed_tokens", "bfloat16")
    assert read_manifest(bundle).embedding.dtype == "bfloat16"
