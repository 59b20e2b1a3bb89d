"""Folded scales change no bit of a float graph; where there is no place for one, none is found.

What is folded is applied here by hand, from what a `Fold` says, and the graph is run by onnxruntime
with the changed initializers: factors are powers of two, so outputs must be equal bit by bit.
"""

import numpy as np
import onnx
import pytest

from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.folding import Fold, find_folds
from vlmedge.quant.graph.linears import GraphWeights, list_linears
from vlmedge.quant.graph.stages import Walk
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

# kind -> what its layers' names end with
KINDS = {
    "norm": ("attn.qkv", "mlp.fc1", "q_proj+k_proj+v_proj", "gate_proj+up_proj", "lm_head"),
    "merger norm": ("merger.mlp.0",),
    "attention values": ("attn.proj", "o_proj"),
    "up_proj": ("down_proj",),
}
NOWHERE = ("mlp.fc2", "merger.mlp.2")  # behind a GELU
SIZES = ["tiny", "tiny-7b"]  # 2 query heads to a head of values, and 7


class Graph:
    """A float graph with its inputs."""

    def __init__(self, bundle, name, questions):
        manifest = read_manifest(bundle)
        self.bundle, self.name = bundle, name
        self.model = read_graph(bundle, manifest, name)
        self.weights = GraphWeights(bundle, self.model)
        self.linears = list_linears(self.model.graph)
        spec = manifest.decoder if name == "decoder" else manifest.vision
        heads = (spec.num_heads, getattr(spec, "num_kv_heads", spec.num_heads))
        self.folds = find_folds(self.model.graph, self.linears, *heads)
        prompts = make_prompts(bundle, manifest, questions.examples)
        self.feeds = [f.tensors for f in make_vision_feeds(prompts) if f.graph == name][:1]
        if name == "decoder":
            noise = np.random.default_rng(0).standard_normal
            visual = [
                noise((visual.num_tokens, spec.hidden_size), np.float32)
                for visual in prompts[0].request.visuals
            ]
            self.feeds = [
                make_decoder_feed(prompts[0], visual, Embeddings(bundle, manifest.embedding))
            ]

    def run(self, changed):
        """Final outputs with other initializers."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in changed:
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed[tensor.name], tensor.name))
        walk = Walk(model, self.bundle, self.feeds, num_threads=1)
        for index in range(len(walk.stages)):
            walk.run_stage(index)
        (name,) = [v.name for v in model.graph.output if not v.name.startswith("present.")]
        return walk.live[0][name]

    def fold(self, kinds, *, divide=True, seed=0):
        """Initializers after random powers of two were folded into layers of some kinds."""
        generator = np.random.default_rng(seed)
        changed = {}

        def read(name):
            return changed.get(name, self.weights.read(name))

        by_name = {linear.name: linear for linear in self.linears}
        for linear in self.linears:
            fold = self.folds.get(linear.name)
            if fold is None or not linear.name.endswith(kinds):
                continue
            shared = 2.0 ** generator.integers(-3, 4, fold.num_channels).astype(np.float32)
            changed[linear.weight] = read(linear.weight) * shared[fold.channels]
            if not divide:
                continue
            for vector in fold.vectors:
                changed[vector] = read(vector) / shared
            if fold.rows is not None:
                source, first = by_name[fold.rows[0]], fold.rows[1]
                rows = slice(first, first + fold.num_channels)
                for name in filter(None, (source.weight, source.bias)):
                    changed[name] = read(name).copy()
                    changed[name][rows] = (changed[name][rows].T / shared).T
        return changed


@pytest.fixture(scope="module")
def graphs(make_bundle, questions):
    made = {}

    def get(size, name):
        if (size, name) not in made:
            made[size, name] = Graph(make_bundle(size).bundle, name, questions)
        return made[size, name]

    return get


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vision", "vision_video", "decoder"])
def test_every_layer_has_a_place_but_those_behind_a_gelu(graphs, size, name):
    graph = graphs(size, name)
    without = {linear.name for linear in graph.linears} - set(graph.folds)
    assert without == {linear.name for linear in graph.linears if linear.name.endswith(NOWHERE)}


@pytest.mark.parametrize(
    ("size", "name", "kind"),
    [
        *((size, "vision", kind) for size in SIZES for kind in list(KINDS)[:3]),
        *((size, "decoder", kind) for size in SIZES for kind in ("norm", *list(KINDS)[2:])),
        ("tiny", "vision_video", "merger norm"),
    ],
)
def test_folding_one_kind_of_layer_changes_no_bit(graphs, size, name, kind):
    graph = graphs(size, name)
    before = graph.run({})
    changed = graph.fold(KINDS[kind])
    assert changed
    np.testing.assert_array_equal(graph.run(changed), before)
    # Scales that are not undone do change it: the test can fail.
    assert np.abs(graph.run(graph.fold(KINDS[kind], divide=False)) - before).max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vision", "decoder"])
def test_folding_all_layers_one_after_another_changes_no_bit(graphs, size, name):
    graph = graphs(size, name)
    every = tuple(end for kind in KINDS.values() for end in kind)
    np.testing.assert_array_equal(graph.run(graph.fold(every, seed=1)), graph.run({}))


def test_the_mergers_four_patches_share_the_norm(graphs):
    fold = graphs("tiny", "vision").folds["visual.merger.mlp.0"]
    assert fold.num_channels == 32
    np.testing.assert_array_equal(fold.channels, np.tile(np.arange(32), 4))
    assert fold.vectors == ("visual.merger.ln_q.weight", "visual.merger.ln_q.bias")


def test_query_heads_share_the_head_of_values_they_look_at(graphs):
    # 7 query heads of 16 on one head of values: all of o_proj's input comes from 16 rows.
    fold = graphs("tiny-7b", "decoder").folds["model.layers.0.self_attn.o_proj"]
    assert fold.rows == ("model.layers.0.self_attn.q_proj+k_proj+v_proj", (7 + 1) * 16)
    np.testing.assert_array_equal(fold.channels, np.tile(np.arange(16), 7))
    # 4 on 2: heads 0 and 1 look at the first.
    fold = graphs("tiny", "decoder").folds["model.layers.0.self_attn.o_proj"]
    first, second = np.arange(16), np.arange(16, 32)
    np.testing.assert_array_equal(fold.channels, np.concatenate([first, first, second, second]))


def test_channels_that_are_one_are_reduced_to_their_largest():
    fold = Fold(np.array([0, 1, 0, 1, 2, 2]))
    values = np.array([1, 5, 3, 2, 0, 4], np.float32)
    np.testing.assert_array_equal(fold.reduce(values), [3, 5, 4])


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization(x, g, g)\n a = Gemm<transB=1>(n, one)\n y = Add(a, n)",
        "a = Gemm<transB=1>(x, one)\n h = Relu(a)\n y = Gemm<transB=1>(h, two)",
        "a = Gemm<transB=1>(x, one)\n s = Sigmoid(a)\n h = Mul(a, s)\n y = Gemm<transB=1>(h, two)",
        "n = LayerNormalization(x, g, g)\n r = Relu(n)\n y = Gemm<transB=1>(r, one)",
    ],
)
def test_what_is_used_elsewhere_or_not_linear_is_no_place(body):
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    model (float[2, 4] x, float[4] g, float[4, 4] one, float[4, 4] two) => (float[2, 4] y)
    {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    for number, node in enumerate(model.graph.node):
        node.name = f"/visual/blocks.0/{node.op_type}{number}/MatMul"
    for name in ("g", "one", "two"):
        values = np.ones(4 if name == "g" else (4, 4), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    assert find_folds(model.graph, list_linears(model.graph), 2, 2) == {}


def test_a_norm_right_before_a_layer_is_a_place_in_the_same_small_graph():
    text = """<ir_version: 10, opset_import: ["" : 23]>
    model (float[2, 4] x, float[4] g, float[4, 4] one) => (float[2, 4] y)
    { n = LayerNormalization(x, g, g)
      y = Gemm<transB=1>(n, one) }"""
    model = onnx.parser.parse_model(text)
    for name in ("g", "one"):
        values = np.ones(4 if name == "g" else (4, 4), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    assert find_folds(model.graph, list_linears(model.graph), 2, 2)["one"].vectors == ("g", "g")
