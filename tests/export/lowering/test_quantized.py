"""Quantized bundles before and after: the same weights, and what the graphs make of them.

Weights are dequantized here, by numpy and from both files. They are equal bit for bit where the
coverage says nothing else; where a target takes no such block they are within half a step.

Both sides run with their Q/DQ as it stands. Between them are other orders of float32 sums, and
where one of those falls on the border of two codes, another code: a level of one activation.
"""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from vlmedge.runtime.backends.ort.exact_products import make_entries
from vlmedge.runtime.bundle.manifest_file import read_manifest

GRAPHS = ("vision", "vision_video", "decoder")
WEIGHT_ONLY = ("int8", "int4", "accurate", "smallest", "qdq", "signed")
STATIC = ("orin", "cpu", "thor", "fp8-attention")
NO_ORIN = ("thor", "fp8-attention")
CASES = [
    (source, target)
    for source in WEIGHT_ONLY + STATIC
    for target in ("jetpack-7.0" if source in NO_ORIN else "jetpack-6.2", "jetpack-7.2")
] + [(source, "tensorrt-rtx") for source in WEIGHT_ONLY]
EXACT = 5e-5  # weight-only: as between float graphs, values of the order of 1
FLIPS = 1e-3  # static scales, of the output's RMS: a few codes of some thousands (measured: none)
HALF_A_STEP = 0.50001  # a level of 127 is divided out in float32
CAPACITY = 48


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


def attributes(node):
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


class Weights:
    """The matrices of a graph as floats, by the checkpoint's name."""

    def __init__(self, model):
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.matrices, self.steps = {}, {}
        for node in model.graph.node:
            if node.op_type in ("Gemm", "MatMulNBits") and "patch_embed" not in node.name:
                name, matrix, step = self.read(node)
                self.matrices[name], self.steps[name] = matrix.astype(np.float64), step

    def read(self, node):
        if node.op_type == "MatMulNBits":
            return self.read_nbits(node)
        maker = self.makers.get(node.input[1])
        if maker is None or maker.op_type == "Cast":
            name = node.input[1] if maker is None else maker.input[0]
            return name.partition(".weight")[0], self.constants[name], np.zeros((1, 1))
        assert maker.op_type == "DequantizeLinear"
        codes, scales = (self.constants[name] for name in maker.input[:2])
        codes, scales = codes.astype(np.float64), scales.astype(np.float64)
        size = attributes(maker).get("block_size")
        # opset 21: element k of a row has scale k // block_size; without blocks, the row's
        each = scales[:, None] if not size else np.repeat(scales, size, axis=1)
        each = each[:, : codes.shape[1]]
        return maker.input[0].partition(".weight")[0], codes * each, each

    def read_nbits(self, node):
        """Of com.microsoft: value k of block b is (code - middle) * scale, low nibbles first."""
        about = attributes(node)
        codes, scales = (self.constants[name] for name in node.input[1:3])
        if about["bits"] == 4:
            flat = np.empty((*codes.shape[:2], 2 * codes.shape[2]))
            flat[..., 0::2], flat[..., 1::2] = codes % 16, codes // 16
        else:
            flat = codes.astype(np.float64)
        scales = scales.reshape(flat.shape[:2]).astype(np.float64)
        matrix = (flat - 2 ** (about["bits"] - 1)) * scales[..., None]
        rows = (len(codes), -1)
        each = np.broadcast_to(scales[..., None], flat.shape).reshape(rows)[:, : about["K"]]
        return (
            node.input[1].partition(".weight")[0],
            matrix.reshape(rows)[:, : about["K"]],
            np.abs(each),
        )


def list_changed(before, after):
    """(graph, layer) of the entries whose precision or reason are not what the source says."""
    kept = {(e.graph, e.name): (e.precision, e.reason) for e in before.coverage}
    floats = ("float32", "float16", "bfloat16")
    return {
        (e.graph, e.name): e
        for e in after.coverage
        if e.kind == "linear"
        and e.precision not in floats
        and kept[e.graph, e.name] != (e.precision, e.reason)
        and "the same values" not in e.reason
    }


def test_dequantized_weights_are_equal_or_the_coverage_says_why_not(
    case, get_source, lower, load_graph
):
    source, _ = case
    before, after = get_source(source), lower(*case)
    changed = list_changed(read_manifest(before), read_manifest(after))
    for graph in GRAPHS:
        old, new = (Weights(load_graph(bundle, graph)) for bundle in (before, after))
        assert old.matrices.keys() == new.matrices.keys()
        for name, matrix in new.matrices.items():
            off = np.abs(matrix - old.matrices[name])
            if (graph, name) in changed:
                assert (off <= new.steps[name] * HALF_A_STEP).all(), name
            else:
                assert not off.any(), name


# What each target leaves as the recipe made it: nothing is rounded again but what has to be.
@pytest.mark.parametrize(
    ("source", "target", "needed"),
    [
        # Rows of 48: no block of theirs is allowed but 16, and TensorRT's INT8 has no blocks
        ("orin", "jetpack-6.2", {"lm_head", "model.layers.{i}.mlp.down_proj"}),
        ("orin", "tensorrt-rtx", set()),
        ("smallest", "tensorrt-rtx", set()),
        ("thor", "jetpack-7.2", {"lm_head"}),
        ("fp8-attention", "jetpack-7.2", set()),
        ("cpu", "jetpack-6.2", {"lm_head", "model.*"}),
    ],
)
def test_layers_that_are_rounded_again_are_those_that_must_be(
    get_source, lower, source, target, needed
):
    manifests = read_manifest(get_source(source)), read_manifest(lower(source, target))
    changed = {name for _, name in list_changed(*manifests)}
    folded = {name.replace(".0.", ".{i}.").replace(".1.", ".{i}.") for name in changed}
    if "model.*" in needed:
        folded = {"model.*" if name.startswith("model.") else name for name in folded}
    assert folded == needed


def test_positive_blocks_that_fit_are_the_very_codes(get_source, lower, load_graph):
    graphs = [load_graph(b, "decoder") for b in (get_source("orin"), lower("orin", "tensorrt-rtx"))]
    old, new = ({t.name: t for t in model.graph.initializer} for model in graphs)
    name = "model.layers.0.self_attn.o_proj.weight"
    codes = numpy_helper.to_array(old[f"{name}.packed"])  # [N, 2, 32]: code + 8, low nibble first
    levels = numpy_helper.to_array(new[f"{name}.int4"]).astype(np.int64)
    assert (codes.reshape(128, -1) % 16 == levels[:, ::2] + 8).all()
    assert (codes.reshape(128, -1) // 16 == levels[:, 1::2] + 8).all()
    scales = numpy_helper.to_array(new[f"{name}.scales.float32"])
    assert (numpy_helper.to_array(old[f"{name}.scales"]) == scales).all()


@pytest.mark.parametrize(("dtype", "bits"), [("fp16", 11), ("bf16", 8)])
@pytest.mark.parametrize("source", ["orin", "thor", "signed"])
def test_a_narrower_type_rounds_scales_and_keeps_codes(lower, load_graph, source, dtype, bits):
    wide, narrow = (load_graph(lower(source, "jetpack-7.2", d), "decoder") for d in ("fp32", dtype))
    narrow_of = {node.output[0]: node for node in narrow.graph.node}
    old, new = (Weights(model) for model in (wide, narrow))
    found = 0
    for node in wide.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in old.constants:
            continue
        found += 1
        other = narrow_of[node.output[0]]
        codes = [w.constants[n.input[0]] for w, n in ((old, node), (new, other))]
        assert codes[0].tobytes() == codes[1].tobytes()
        scales = [w.constants[n.input[1]] for w, n in ((old, node), (new, other))]
        assert scales[1].dtype == (np.float16 if dtype == "fp16" else ml_dtypes.bfloat16)
        wide_scales, narrow_scales = (s.astype(np.float64) for s in scales)
        assert (np.abs(narrow_scales - wide_scales) <= wide_scales * 2.0**-bits + 2.0**-25).all()
    assert found >= 8


# --- what the graphs compute


def make_session(model, *, fuse=False):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    for key, value in make_entries(content, keep_qdq=not fuse).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def use_float_activations(model):
    """MatMulNBits rounds its input to INT8 blocks of its own: a product of floats instead."""
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "accuracy_level":
                item.i = 1  # float32
    return model


def use_weights(model, matrices):
    """The graph with other matrices: those of a lowered one, where it had to round again."""
    weights = Weights(model)
    graph, kept = model.graph, []
    for node in list(graph.node):
        if node.op_type in ("Gemm", "MatMulNBits") and "patch_embed" not in node.name:
            name, old, _ = weights.read(node)
            new = matrices[name].astype(np.float32)
            if np.abs(new - old).any():
                dense = f"{node.name}/dense"
                graph.initializer.append(numpy_helper.from_array(new, dense))
                bias = [n for n in node.input[2 if node.op_type == "Gemm" else 5 :] if n]
                inputs = [node.input[0], dense, *bias]
                node = onnx.helper.make_node("Gemm", inputs, node.output, node.name, transB=1)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return model


def draw_vision_feed(size):
    rng = np.random.default_rng(size)
    ids = np.stack(np.indices((4, 6)), axis=-1).reshape(1, 24, 2)
    return {
        "pixel_values": rng.integers(0, 256, (2, 24, size), dtype=np.uint8),
        "position_ids": np.tile(ids, (2, 1, 1)),
    }


def draw_decoder_feed():
    rng = np.random.default_rng(3)
    return {
        "inputs_embeds": rng.standard_normal((2, 9, 128)).astype(np.float32) * 0.05,
        "position_ids": np.sort(rng.integers(0, 20, (3, 2, 9)), axis=2),
        "logit_index": np.array([8, 4]),
    }


def feed_of(graph, model):
    """The same numbers in the form that a flavor takes them: a prompt of 9 tokens, and of 5."""
    if graph != "decoder":
        return draw_vision_feed(588 if graph == "vision" else 1176)
    feed = draw_decoder_feed()
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    for name in inputs:
        if name.startswith("past_key_values"):
            feed[name] = np.zeros((2, 2, CAPACITY, 32), np.float32)
    if "seqlens_k" in inputs:
        feed["seqlens_k"] = np.array([8, 4], np.int32)
        feed["total_sequence_length"] = np.array(9, np.int32)
    elif "write_indices" in inputs:
        feed["write_indices"] = np.zeros(2, np.int64)
        feed["attention_mask"] = np.tile(np.tri(9, CAPACITY, dtype=bool), (2, 1, 1, 1))
    else:
        mask = np.hstack([np.zeros((9, CAPACITY), bool), np.tri(9, dtype=bool)])
        feed["attention_mask"] = np.tile(mask, (2, 1, 1, 1))
    return feed


def run(graph, model, *, fuse=False):
    name = "logits" if graph == "decoder" else "image_embeds"
    return make_session(model, fuse=fuse).run([name], feed_of(graph, model))[0]


def rel_rms(got, needed):
    return float(np.sqrt(np.mean((got - needed) ** 2) / np.mean(needed**2)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_graph_computes_what_the_source_does(case, get_source, lower, load_graph, graph):
    lowered = load_graph(lower(*case), graph)
    source = use_float_activations(load_graph(get_source(case[0]), graph))
    needed = run(graph, use_weights(source, Weights(lowered).matrices))
    got = run(graph, lowered)
    if case[0] in WEIGHT_ONLY:
        np.testing.assert_allclose(got, needed, rtol=0, atol=EXACT)
    else:
        assert rel_rms(got, needed) <= FLIPS


@pytest.mark.parametrize(("source", "graph"), [("orin", "vision"), ("cpu", "vision")])
def test_what_onnxruntime_fuses_differs_no_more_than_the_two_flavors(
    get_source, lower, load_graph, source, graph
):
    # The shipped way of running the source, integer kernels and all.
    fused = run(graph, load_graph(get_source(source), graph), fuse=True)
    lowered = run(graph, load_graph(lower(source, "tensorrt-rtx"), graph), fuse=True)
    assert rel_rms(lowered, fused) <= 0.02


@pytest.mark.parametrize("source", ["orin", "signed", "thor"])
def test_the_comparison_can_fail(get_source, lower, load_graph, source):
    lowered = load_graph(lower(source, "jetpack-7.2"), "vision")
    needed = run("vision", lowered)
    scale = next(
        node.input[1]
        for node in lowered.graph.node
        if node.op_type == "DequantizeLinear" and node.name.endswith("weight/DequantizeLinear")
    )
    for tensor in lowered.graph.initializer:
        if tensor.name == scale:  # one matrix a per cent larger
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, scale))
    assert rel_rms(run("vision", lowered), needed) > 2 * FLIPS
