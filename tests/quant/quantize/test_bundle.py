"""What a quantized bundle's manifest says is what is in its graphs, read from them once more."""

import hashlib

import numpy as np
import onnx
import pytest

from vlmedge.quant.graph.files import locate
from vlmedge.quant.graph.joined_names import split_joined
from vlmedge.quant.recipe.toml import parse_recipe
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import read_manifest

TYPES = onnx.TensorProto
MIXED = """name = "mixed"
[vision]
format = "int8"
[decoder]
format = "int4-weight"
layout = "qdq"
block_size = 64
[lm_head]
format = "fp8"
[embedding]
format = "int8"
[kv_cache]
format = "int8-channel"
[attention]
vision = "fp8"
[[layers]]
pattern = "visual.blocks.0.*"
format = "int8-dynamic"
reason = "first block"
[[layers]]
pattern = "visual.blocks.0.mlp.fc?"
format = "float"
reason = "its MLP"
[[layers]]
pattern = "visual.merger.*"
format = "int8-weight"
block_size = 32
"""
CASES = [
    *(("tiny", "fp32", name) for name in ("accurate", "cpu", "orin", "smallest", "thor")),
    ("tiny", "fp32", MIXED),
    ("tiny", "fp16", MIXED),
    ("tiny-7b", "fp32", "thor"),
    ("tiny-7b", "fp16", "accurate"),
]
IDS = [f"{size}-{weights}-{text.split(chr(10))[0][:5]}" for size, weights, text in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def made(request, quantize):
    size, weights, text = request.param
    return quantize(text, size, weights)


class Graph:
    """An ONNX file's nodes and constants, for looking around in."""

    def __init__(self, path):
        self.model = onnx.load(path, load_external_data=False)
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {v: node for node in self.model.graph.node for v in node.output if v}

    def list_linears(self):
        """Layer -> precision: what is multiplied, by the types of what is stored."""
        found = {}
        for node in self.model.graph.node:
            if node.op_type == "MatMulNBits":
                attributes = {a.name: a.i for a in node.attribute}
                name = node.input[1].removesuffix(".packed")
                found[name] = "int{bits} block {block_size}".format(**attributes)
            elif node.op_type == "Gemm":
                weight, kind = self._describe(node)
                found[weight] = kind
        return {
            name.partition(".weight")[0]: kind
            for name, kind in found.items()
            if "patch_embed" not in name
        }

    def _describe(self, node):
        maker = self.makers.get(node.input[1])
        weight = node.input[1] if maker is None else maker.input[0]
        stored = self.tensors[weight].data_type
        if maker is None or maker.op_type == "Cast":
            return weight, onnx.helper.tensor_dtype_to_np_dtype(stored).name
        assert maker.op_type == "DequantizeLinear"
        blocks = [a.i for a in maker.attribute if a.name == "block_size"]
        if blocks:
            kind = {TYPES.INT4: "int4", TYPES.INT8: "int8"}[stored]
            return weight, f"{kind} block {blocks[0]}"
        source = self.makers[node.input[0]]
        assert source.op_type == "DequantizeLinear"
        quantize = self.makers[source.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert self.tensors[quantize.input[2]].data_type == stored
        if stored == TYPES.FLOAT8E4M3FN:
            return weight, "float8_e4m3fn"
        assert stored == TYPES.INT8
        divided = self.makers.get(quantize.input[0])
        is_dynamic = divided is not None and divided.op_type == "Div"
        return weight, "int8 dynamic" if is_dynamic else "int8 static"

    def list_attentions(self):
        """Stage of an attention -> precision of its products."""
        found = {}
        for node in self.model.graph.node:
            prefix = node.name.rpartition("/attn/")[0].strip("/").replace("/", ".")
            if node.op_type in ("MultiHeadAttention", "GroupQueryAttention"):
                found[prefix] = "float32"
            elif node.op_type == "Softmax":
                (user,) = (n for n in self.model.graph.node if node.output[0] in n.input)
                kind = self.tensors[user.input[2]].data_type
                assert (user.op_type, kind) == ("QuantizeLinear", TYPES.FLOAT8E4M3FN)
                found[prefix] = "float8_e4m3fn"
        return found

    def list_caches(self):
        found = {}
        kinds = {v.name: v.type.tensor_type.elem_type for v in self.model.graph.input}
        for node in self.model.graph.node:
            if node.op_type == "GroupQueryAttention":
                prefix = node.name.rpartition("/attn/")[0].strip("/").replace("/", ".")
                types = {kinds[name] for name in node.input[3:5]}
                quant = [a.s.decode() for a in node.attribute if a.name.endswith("quant_type")]
                if types == {TYPES.INT8}:
                    assert len(set(quant)) == 1
                    found[prefix] = f"int8 {quant[0].lower().replace('_', ' ')}"
                else:
                    assert types == {TYPES.FLOAT}
                    assert not quant
                    found[prefix] = "float32"
        return found


def read_graphs(made):
    return {name: Graph(made.bundle / spec.file) for name, spec in made.manifest.graphs.items()}


def list_listed(manifest, kind, graph):
    return {
        entry.name: entry.precision
        for entry in manifest.coverage
        if (entry.kind, entry.graph) == (kind, graph) and "patch_embed" not in entry.name
    }


def test_coverage_is_what_is_in_the_graphs(made):
    for name, graph in read_graphs(made).items():
        assert list_listed(made.manifest, "linear", name) == graph.list_linears()
        attention = ".self_attn.products" if name == "decoder" else ".attn.products"
        products = {f"{k}{attention}": v for k, v in graph.list_attentions().items()}
        assert list_listed(made.manifest, "attention", name) == products
        caches = {f"{k}.self_attn.cache": v for k, v in graph.list_caches().items()}
        assert list_listed(made.manifest, "kv_cache", name) == caches
    table = list_listed(made.manifest, "table", None)
    assert table == {"model.embed_tokens": made.manifest.embedding.description}


def test_coverage_names_what_the_float_bundle_has_and_nothing_else(made):
    float_entries = read_manifest(made.source).coverage
    assert [(e.graph, e.name, e.kind) for e in made.manifest.coverage] == [
        (e.graph, e.name, e.kind) for e in float_entries
    ]


def test_every_entry_has_the_plans_reason(made):
    recipe = made.recipe
    for entry in made.manifest.coverage:
        plan = made.result.plan.layers.get(entry.name)
        if plan is not None:
            assert entry.reason == plan.reason
        elif entry.kind == "table":
            assert (entry.reason == "recipe") == (recipe.embedding.format != "float")
        elif entry.kind == "kv_cache":
            assert (entry.reason == "recipe") == (recipe.kv_cache.format != "float")
        elif entry.kind == "attention":
            is_chosen = recipe.attention.vision != "float" and "visual" in entry.name
            assert (entry.reason == "recipe") == is_chosen
        else:
            assert entry.reason == "export keeps it float"


def test_precision_names_every_checkpoint_tensor_as_its_layer_is_covered(made):
    old = read_manifest(made.source).precision
    assert list(made.manifest.precision) == sorted(old)
    covered = {}
    for entry in made.manifest.coverage:
        if entry.kind == "linear":
            prefix, _, parts = entry.name.rpartition(".")
            for part in parts.split("+"):
                covered[f"{prefix}.{part}.weight".removeprefix(".")] = entry.precision
        elif entry.kind == "table":
            covered[f"{entry.name}.weight"] = entry.precision
    for tensor, precision in made.manifest.precision.items():
        assert precision == covered.get(tensor, old[tensor])


def test_graphs_are_valid_and_files_are_as_the_manifest_records_them(made):
    for spec in made.manifest.graphs.values():
        onnx.checker.check_model(str(made.bundle / spec.file))
    on_disk = {path.name for path in made.bundle.iterdir()}
    assert on_disk == {*made.manifest.files, MANIFEST_NAME}
    for name, record in made.manifest.files.items():
        content = (made.bundle / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert read_manifest(made.bundle) == made.manifest


def test_graphs_take_and_give_what_the_manifest_says(made):
    for name, graph in read_graphs(made).items():
        spec = made.manifest.graphs[name]
        for listed, values in (
            (spec.inputs, graph.model.graph.input),
            (spec.outputs, graph.model.graph.output),
        ):
            assert [tensor.name for tensor in listed] == [value.name for value in values]
            for tensor, value in zip(listed, values, strict=True):
                kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                assert tensor.dtype == kind.name
        has_float8 = any(t.data_type == TYPES.FLOAT8E4M3FN for t in graph.tensors.values())
        assert spec.keep_qdq == has_float8


def test_pictures_and_clips_share_one_copy_of_the_weights(made):
    graphs = read_graphs(made)
    one, other = graphs["vision"].tensors, graphs["vision_video"].tensors
    alone = {name for name in {*one} ^ {*other} if "shape" not in name}
    assert all("patch_embed" in name for name in alone)
    places = set()
    for name in {*one, *other}:
        found = [graph[name] for graph in (one, other) if name in graph]
        if found[0].external_data:
            assert len({locate(tensor) for tensor in found}) == 1
            places.add(locate(found[0]))
        else:
            assert len({tensor.raw_data for tensor in found}) == 1
    size = (made.bundle / "vision.onnx.data").stat().st_size
    assert size < sum(length for _, _, length in places) + 4096 * len(places)  # and padding


def test_zero_points_are_zero(made):
    for graph in read_graphs(made).values():
        onnx.external_data_helper.load_external_data_for_model(graph.model, str(made.bundle))
        for node in graph.model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
                point = onnx.numpy_helper.to_array(graph.tensors[node.input[2]])
                assert not point.astype(np.float32).any()
                assert point.dtype != np.uint8


def test_the_record_is_enough_to_do_it_again(made, questions):
    record = made.manifest.quantization
    assert record.recipe == made.recipe.name
    assert parse_recipe(record.recipe_toml, "record") == made.recipe
    if made.recipe.needs_data:
        assert (record.data, record.data_sha256) == (questions.name, questions.sha256)
    else:
        assert (record.data, record.data_sha256) == (None, None)
    assert {"vlmedge", "onnx", "onnxruntime", "numpy"} <= set(record.versions)


def test_a_fallback_to_float_is_recorded_and_is_in_the_graph(quantize):
    made = quantize(MIXED)  # 96 inputs are no multiple of 64
    (entry,) = (e for e in made.manifest.coverage if e.name == "model.layers.0.mlp.down_proj")
    assert (entry.precision, entry.reason) == (
        "float32",
        "fallback: 96 inputs are no multiple of 64",
    )


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("lm_head", ("lm_head.weight",)),
        ("visual.merger.mlp.0", ("visual.merger.mlp.0.weight",)),
        (
            "model.layers.1.mlp.gate_proj+up_proj",
            ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ),
    ],
)
def test_a_layers_name_is_its_checkpoint_tensors(name, tensors):
    assert split_joined(name) == tensors
