"""A decoder whose KV cache is int8: exact against a float one with rounded keys and values.

The graphs are made here from the tiny bundle's: GroupQueryAttention with an int8 cache, and, as the
oracle, the same float graph with QuantizeLinear and DequantizeLinear on the keys and values that
enter it. Tolerance: a last bit of a float32 sum may move one code of the next layer by a step.
"""

import json
import shutil

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.backends.ort.session import INT8_CACHE_SINCE
from vlmedge.runtime.bundle.manifest import MANIFEST_NAME
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.bundle.manifest_seal import seal_manifest

pytestmark = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < INT8_CACHE_SINCE,
    reason=f"onnxruntime {ort.__version__} has no int8 cache on the CPU",
)
KINDS = ("PER_TENSOR", "PER_CHANNEL")
CAPACITY = 64
EXACT = 2e-3  # largest difference over the float logits' root mean square
OPTIONS = GenerationOptions(max_new_tokens=12, ignore_eos=True)


def make_inputs(manifest, batch, num_tokens, seed=0):
    """Embeddings and positions of some sequences, of the size that a table's rows have."""
    rng = np.random.default_rng(seed)
    size = manifest.decoder.hidden_size
    embeds = rng.standard_normal((batch, num_tokens, size)).astype(np.float32) * 0.5
    positions = np.sort(rng.integers(0, num_tokens, (3, batch, num_tokens)), axis=2)
    return embeds, positions


def step(backend, cache, embeds, positions, lengths, row=None, logit_index=None):
    """One decoder call behind `lengths` cached tokens; a copy of its logits."""
    num_tokens = embeds.shape[1]
    call = backend.bind_decoder(cache, num_tokens, row=row)
    call.inputs_embeds[...] = embeds
    call.position_ids[...] = positions
    call.seqlens_k[...] = np.asarray(lengths) + num_tokens - 1
    call.total_sequence_length[...] = np.max(lengths) + num_tokens
    call.logit_index[...] = num_tokens - 1 if logit_index is None else logit_index
    return call.run().copy()


def open_backend(bundle):
    return OrtBackend(bundle, read_manifest(bundle), providers="cpu", num_threads=1)


@pytest.fixture(scope="session")
def ranges(tiny):
    """Past name -> largest magnitude of each channel, float32[num_kv_heads, head_dim]."""
    backend = open_backend(tiny.bundle)
    cache = backend.make_cache(64, CAPACITY)
    embeds, positions = make_inputs(read_manifest(tiny.bundle), 64, 40, seed=9)
    step(backend, cache, embeds, positions, 0)
    return {name: np.abs(buffer).max(axis=(0, 2)) for name, buffer in cache.buffers.items()}


def rewrite(tiny, folder, change, cache_dtype):
    """A copy of the tiny bundle with every attention of its decoder changed."""
    bundle = shutil.copytree(tiny.bundle, folder)
    model = ir.load(bundle / "decoder.onnx")
    for node in [n for n in model.graph if n.op_type == "GroupQueryAttention"]:
        change(model.graph, node)
    text = ir.to_proto(model).SerializeToString()
    (bundle / "decoder.onnx").write_bytes(text)
    raw = json.loads((bundle / MANIFEST_NAME).read_text())
    raw["files"]["decoder.onnx"]["bytes"] = len(text)
    decoder = raw["graphs"]["decoder"]
    for spec in decoder["inputs"] + decoder["outputs"]:
        if spec["name"].startswith(("past", "present")):
            spec["dtype"] = cache_dtype
    (bundle / MANIFEST_NAME).write_text(seal_manifest(raw))
    return bundle


def add_constant(graph, name, array):
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def make_scale(amax, kind, shrink):
    """float32[1], or float32[1, num_kv_heads, 1, head_dim]."""
    amax = np.maximum(amax, 1e-3) * shrink / 127
    return amax.max().reshape(1) if kind == "PER_TENSOR" else amax[None, :, None, :]


@pytest.fixture(scope="session")
def make_int8(tiny, ranges, tmp_path_factory):
    """(kind, shrink of the ranges) -> a bundle whose cache is int8."""
    made = {}

    def make(kind, shrink=1.0):
        def change(graph, node):
            scales = []
            for past in node.inputs[3:5]:
                scale = make_scale(ranges[past.name], kind, np.float32(shrink))
                scales.append(add_constant(graph, f"{past.name}.scale", scale))
                past.type = ir.TensorType(ir.DataType.INT8)
            for present in node.outputs[1:]:
                present.type = ir.TensorType(ir.DataType.INT8)
            node.resize_inputs(14)
            for place, scale in zip((12, 13), scales, strict=True):
                node.replace_input_with(place, scale)
            for name in ("k_quant_type", "v_quant_type"):
                node.attributes[name] = ir.AttrString(name, kind)
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)

        if (kind, shrink) not in made:
            folder = tmp_path_factory.mktemp("int8") / "bundle"
            made[kind, shrink] = rewrite(tiny, folder, change, "int8")
        return made[kind, shrink]

    return make


@pytest.fixture(scope="session")
def make_oracle(tiny, ranges, tmp_path_factory):
    """(kind) -> a float bundle whose keys and values are rounded before they enter attention."""
    made = {}

    def make(kind):
        def change(graph, node):
            for place, past in ((1, node.inputs[3]), (2, node.inputs[4])):
                scale = make_scale(ranges[past.name], kind, np.float32(1)).reshape(-1)
                name = f"{past.name}.scale"
                parts = [
                    add_constant(graph, name, scale if len(scale) > 1 else scale.reshape(())),
                    add_constant(graph, f"{name}.zero", np.zeros(scale.shape, np.int8).squeeze()),
                ]
                axis = {"axis": 2} if len(scale) > 1 else {}
                codes = ir.node("QuantizeLinear", [node.inputs[place], *parts], axis)
                values = ir.node("DequantizeLinear", [codes.outputs[0], *parts], axis)
                graph.insert_before(node, [codes, values])
                node.replace_input_with(place, values.outputs[0])

        if kind not in made:
            folder = tmp_path_factory.mktemp("oracle") / "bundle"
            made[kind] = rewrite(tiny, folder, change, "float32")
        return made[kind]

    return make


def run_chunks(bundle, chunks, batch=1):
    """Logits behind every chunk of the same 34 tokens, and the cache."""
    backend = open_backend(bundle)
    embeds, positions = make_inputs(read_manifest(bundle), batch, 34)
    cache = backend.make_cache(batch, CAPACITY)
    logits, start = [], 0
    for size in chunks:
        part = slice(start, start + size)
        logits.append(step(backend, cache, embeds[:, part], positions[:, :, part], start))
        start += size
    return np.array(logits), cache


def measure(got, needed):
    """Largest difference over the root mean square."""
    return np.abs(got - needed).max() / np.sqrt(np.mean(needed**2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [(30, 1, 1, 1, 1), (10, 9, 1, 13, 1)])
def test_prefill_in_chunks_and_decoding_are_float_attention_over_rounded_values(
    make_int8, make_oracle, kind, chunks
):
    got, cache = run_chunks(make_int8(kind), chunks)
    needed, _ = run_chunks(make_oracle(kind), chunks)
    assert measure(got, needed) < EXACT
    assert {buffer.dtype for buffer in cache.buffers.values()} == {np.dtype(np.int8)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_is_a_quarter_of_a_float_one_and_holds_scaled_values(tiny, make_int8, kind):
    _, floats = run_chunks(tiny.bundle, (34,))
    _, codes = run_chunks(make_int8(kind), (34,))
    assert codes.num_bytes * 4 == floats.num_bytes
    first = "past_key_values.0.value"  # of the first layer: nothing before it was rounded
    scale = {
        v.name: v for v in ir.load(make_int8(kind) / "decoder.onnx").graph.initializers.values()
    }
    scale = scale[f"{first}.scale"].const_value.numpy()
    expected = np.clip(np.rint(floats.buffers[first] / scale), -128, 127)
    assert np.abs(codes.buffers[first] - expected).max() <= 1
    assert (codes.buffers[first] == expected).mean() > 0.999
    assert not codes.buffers[first][:, :, 34:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_against_floats_is_small_and_that_of_clipped_ranges_is_not(tiny, make_int8, kind):
    floats, _ = run_chunks(tiny.bundle, (30, 1, 1, 1, 1))
    good, _ = run_chunks(make_int8(kind), (30, 1, 1, 1, 1))
    clipped, _ = run_chunks(make_int8(kind, 0.05), (30, 1, 1, 1, 1))
    assert 0 < measure(good, floats) < 0.1
    assert measure(clipped, floats) > 5 * measure(good, floats)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_ragged_batch_are_what_they_are_alone(make_int8, kind):
    """Padded prefill of three lengths in one call, then decoding in one call."""
    bundle = make_int8(kind)
    backend = open_backend(bundle)
    embeds, positions = make_inputs(read_manifest(bundle), 3, 20)
    lengths = np.array([12, 20, 5])
    cache = backend.make_cache(3, CAPACITY)
    call = backend.bind_decoder(cache, 20)
    call.inputs_embeds[...] = embeds
    call.position_ids[...] = positions
    call.seqlens_k[...] = call.logit_index[...] = lengths - 1
    call.total_sequence_length[...] = 20
    together = [call.run().copy()]
    for i in range(3):
        together.append(
            step(backend, cache, embeds[:, i, None], positions[:, :, i, None], lengths + i)
        )
    for row, length in enumerate(lengths):
        own = backend.make_cache(1, CAPACITY)
        span = slice(0, length)
        part = slice(row, row + 1)
        alone = [step(backend, own, embeds[part, span], positions[:, part, span], 0)]
        for i in range(3):
            token = slice(i, i + 1)
            alone.append(
                step(backend, own, embeds[part, token], positions[:, part, token], length + i)
            )
        assert measure(np.array(together)[:, row], np.array(alone)[:, 0]) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_bound_alone_leaves_the_others_as_they_are(make_int8, kind):
    bundle = make_int8(kind)
    backend = open_backend(bundle)
    embeds, positions = make_inputs(read_manifest(bundle), 2, 20)
    cache = backend.make_cache(2, CAPACITY)
    for row, chunks in ((1, (20,)), (0, (7, 13))):
        before = {name: buffer[1 - row].copy() for name, buffer in cache.buffers.items()}
        start, part = 0, slice(row, row + 1)
        for size in chunks:
            span = slice(start, start + size)
            logits = step(
                backend, cache, embeds[part, span], positions[:, part, span], start, row=row
            )
            start += size
        own = backend.make_cache(1, CAPACITY)
        alone = step(backend, own, embeds[part], positions[:, part], 0)
        assert measure(logits, alone) < EXACT
        for name, buffer in cache.buffers.items():
            np.testing.assert_array_equal(buffer[1 - row], before[name])
            assert np.abs(buffer[row].astype(int) - own.buffers[name][0]).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_with_an_int8_cache_alone_and_in_a_batch(make_int8, kind):
    questions = ["What is it?", "0 1 2 3 4 5 6 7 8 9 " * 40, "Why?"]  # one over a prefill call
    picture = np.random.default_rng(0).integers(0, 256, (84, 112, 3), np.uint8)
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, q]}]
        for q in ({"type": "text", "text": question} for question in questions)
    ]
    with Model.load(make_int8(kind), num_threads=1) as model:
        alone = [model.chat(messages, OPTIONS) for messages in conversations]
        together = model.chat_batch(conversations, OPTIONS)
        short = model.chat_batch(conversations[::2], OPTIONS)
    assert all(len(answer.token_ids) == 12 for answer in together)
    assert [answer.token_ids[0] for answer in together] == [a.token_ids[0] for a in alone]
    assert [answer.token_ids[0] for answer in short] == [a.token_ids[0] for a in alone[::2]]
