"""Attention over an int8 cache, against numpy: what is cached, and what is made of it."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.quantize.calibration import LayerCalibration
from vlmedge.quant.quantize.int8_cache import make_cache_nodes, make_scale, mark_cache
from vlmedge.quant.quantize.products import name_cache
from vlmedge.quant.quantize.rewrite import rewrite
from vlmedge.quant.rounding.histogram import ActivationStats
from vlmedge.runtime import GenerationOptions, Model

HEADS, KV_HEADS, SIZE = 4, 2, 16
LENGTH, PROMPT = 12, 9  # of the buffer, and of what is read at once
NODE = "/model/layers.0/attn/GroupQueryAttention"
STAGE = "model.layers.0"
FORMATS = ["int8-tensor", "int8-channel"]


def make_float_model():
    """One attention of the decoder: [1, S, heads * size] and a cache of [1, heads, L, size]."""
    inputs = [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)]
    infos = [onnx.helper.make_tensor_value_info(n, 1, [1, "S", h * SIZE]) for n, h in inputs]
    cache = [1, KV_HEADS, LENGTH, SIZE]
    pasts = [f"past_key_values.0.{part}" for part in ("key", "value")]
    presents = [f"present.0.{part}" for part in ("key", "value")]
    infos += [onnx.helper.make_tensor_value_info(name, 1, cache) for name in pasts]
    infos.append(onnx.helper.make_tensor_value_info("seqlens_k", 6, [1]))
    infos.append(onnx.helper.make_tensor_value_info("total_sequence_length", 6, []))
    outputs = [onnx.helper.make_tensor_value_info("y", 1, [1, "S", HEADS * SIZE])]
    outputs += [onnx.helper.make_tensor_value_info(name, 1, cache) for name in presents]
    node = onnx.helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", *pasts, "seqlens_k", "total_sequence_length"],
        ["y", *presents],
        NODE,
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "one_attention", infos, outputs)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def draw():
    """Queries, keys whose channels differ much, values; [L, heads, size]."""
    generator = np.random.default_rng(0)
    q = generator.standard_normal((LENGTH, HEADS, SIZE), np.float32)
    k = generator.standard_normal((LENGTH, KV_HEADS, SIZE), np.float32)
    k *= np.geomspace(0.1, 10, SIZE, dtype=np.float32)
    v = generator.standard_normal((LENGTH, KV_HEADS, SIZE), np.float32)
    return q, k, v


def calibrate(k, v):
    found = {}
    for part, values in (("key", k), ("value", v)):
        stats = ActivationStats(KV_HEADS * SIZE)
        stats.update(values.reshape(LENGTH, -1))
        found[name_cache(STAGE, part)] = LayerCalibration(stats)
    return found


def make_session(format, k, v):
    model = make_float_model()
    nodes = make_cache_nodes(model.graph, format, calibrate(k, v), KV_HEADS)
    rewritten = rewrite(model, nodes, {})
    mark_cache(rewritten.model.graph)
    for name, array in rewritten.tensors.items():
        rewritten.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(rewritten.model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(rewritten.model.SerializeToString(), options), rewritten.tensors


def step(session, first, last, q, k, v, cache):
    """Read positions first .. last - 1."""
    factors = {"q": q, "k": k, "v": v}
    feed = {name: x[first:last].reshape(1, last - first, -1) for name, x in factors.items()}
    feed |= {"seqlens_k": np.array([last - 1], np.int32)}
    feed |= {"total_sequence_length": np.array(last, np.int32)}
    feed |= {f"past_key_values.0.{part}": cache[part] for part in cache}
    y, key, value = session.run(None, feed)
    return y[0].reshape(last - first, HEADS, SIZE), {"key": key, "value": value}


def attend(q, k, v, first):
    """Softmax attention by its definition, causal; q begins at position `first`."""
    out = np.zeros_like(q)
    for row in range(len(q)):
        for head in range(HEADS):
            keys, values = (x[: first + row + 1, head // (HEADS // KV_HEADS)] for x in (k, v))
            scores = keys @ q[row, head] / np.sqrt(SIZE)
            shares = np.exp(scores - scores.max())
            out[row, head] = shares / shares.sum() @ values
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_prompt_and_decoding_attend_to_the_rounded_cache(format):
    q, k, v = draw()
    session, tensors = make_session(format, k, v)
    scales = [tensors[f"{name_cache(STAGE, p)}.scale"] for p in ("key", "value")]
    if format == "int8-channel":
        scales = [scale[0, :, 0] for scale in scales]  # [heads, size]
    key_levels, value_levels = (
        np.clip(np.rint(x / scale), -128, 127).astype(np.int8)
        for x, scale in zip((k, v), scales, strict=True)
    )
    keys, values = key_levels * scales[0], value_levels * scales[1]

    empty = {part: np.zeros((1, KV_HEADS, LENGTH, SIZE), np.int8) for part in ("key", "value")}
    y, cache = step(session, 0, PROMPT, q, k, v, empty)
    for part, levels in (("key", key_levels), ("value", value_levels)):
        np.testing.assert_array_equal(cache[part][0, :, :PROMPT].swapaxes(0, 1), levels[:PROMPT])
    np.testing.assert_allclose(y, attend(q[:PROMPT], keys, values, 0), rtol=0, atol=5e-6)
    for position in range(PROMPT, LENGTH):
        y, cache = step(session, position, position + 1, q, k, v, cache)
        needed = attend(q[position : position + 1], keys, values, position)
        np.testing.assert_allclose(y, needed, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(cache["key"][0], key_levels.swapaxes(0, 1))


def test_keys_of_unlike_channels_are_kept_better_by_a_scale_each():
    q, k, v = draw()
    exact = attend(q[-1:], k, v, LENGTH - 1)
    errors = {}
    for format in FORMATS:
        session, _ = make_session(format, k, v)
        empty = {part: np.zeros((1, KV_HEADS, LENGTH, SIZE), np.int8) for part in ("key", "value")}
        _, cache = step(session, 0, LENGTH - 1, q, k, v, empty)
        y, _ = step(session, LENGTH - 1, LENGTH, q, k, v, cache)
        errors[format] = np.abs(y - exact).max()
    assert errors["int8-channel"] < errors["int8-tensor"] < 0.2


def test_scales_put_the_largest_on_the_last_level():
    amax = np.array([1, 2, 0, 4], np.float32)
    tensor = make_scale(amax, "int8-tensor", 2)
    np.testing.assert_allclose(tensor, [4 / 127], rtol=1e-6)
    channel = make_scale(amax, "int8-channel", 2)
    assert channel.shape == (1, 2, 1, 2)
    np.testing.assert_allclose(channel.reshape(-1)[[0, 1, 3]], amax[[0, 1, 3]] / 127, rtol=1e-6)
    assert 0 < channel[0, 1, 0, 0] < 1e-7  # never seen: nothing is divided by 0
    assert (make_scale(np.zeros(4, np.float32), "int8-tensor", 2) > 0).all()


def test_a_float_cache_is_left_alone():
    assert make_cache_nodes(make_float_model().graph, "float", {}, KV_HEADS) == {}


RECIPE = """name = "{}"
[kv_cache]
format = "{}"
"""


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bundle_with_an_int8_cache_generates_what_the_float_one_does(
    quantize, questions, size, format
):
    made = quantize(RECIPE.format(format, format), size)
    spec = made.manifest.graphs["decoder"]
    caches = [t for t in (*spec.inputs, *spec.outputs) if "past" in t.name or "present" in t.name]
    assert {tensor.dtype for tensor in caches} == {"int8"}
    entries = [entry for entry in made.manifest.coverage if entry.kind == "kv_cache"]
    words = {"int8-tensor": "int8 per tensor", "int8-channel": "int8 per channel"}[format]
    assert {(entry.precision, entry.reason) for entry in entries} == {(words, "recipe")}
    options = GenerationOptions(max_new_tokens=6, do_sample=False, repetition_penalty=1.0)
    for example in questions.examples:
        answers = []
        for folder in (made.source, made.bundle):
            with Model.load(folder, providers="cpu", num_threads=1) as model:
                answers.append(model.chat(example.messages, options).token_ids)
        assert answers[0][0] == answers[1][0]
        assert len(answers[1]) == len(answers[0])
