"""A split decoder: the chain of parts gives the whole graph's numbers, from the same weights."""

import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.export.engines.profiles import TOKENS, derive_extents, shape_profiles
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.engines.split import list_data_files, read_graph, split_decoder
from vlmedge.runtime.bundle.manifest_file import read_manifest

BATCH, SEQUENCE = 2, 5
# In one order: sums of the same numbers, so nothing may differ
WAYS = [(1, True), (2, False), (2, True), (3, False), (3, True)]


def load_parts(bundle, num_parts, separate_lm_head):
    spec = read_manifest(bundle).graphs["decoder"]
    model = read_graph(bundle / spec.file)
    return split_decoder(model, spec, num_parts, separate_lm_head=separate_lm_head)


def make_feed(bundle, capacity=16, used=3, seed=0):
    """A chunk of a prompt behind `used` tokens of the cache, as the manifest's inputs want it."""
    manifest = read_manifest(bundle)
    generator = np.random.default_rng(seed)
    in_place = manifest.target.cache == "in_place"
    capacity = manifest.target.capacity if in_place else capacity
    cached = np.arange(capacity)[None, :]
    own = np.arange(SEQUENCE)[:, None]
    if in_place:
        mask = cached <= used + own
    else:
        mask = np.hstack([np.tile(cached < used, (SEQUENCE, 1)), own >= own.T])
    sizes = {
        "batch": BATCH,
        "sequence": SEQUENCE,
        "capacity": capacity,
        "total": capacity + SEQUENCE,
    }
    feed = {}
    for spec in manifest.graphs["decoder"].inputs:
        shape = tuple(sizes.get(dim, dim) for dim in spec.shape)
        if spec.dtype == "float32":
            feed[spec.name] = generator.normal(size=shape).astype(np.float32)
    feed["position_ids"] = generator.integers(0, 40, (3, BATCH, SEQUENCE))
    feed["logit_index"] = np.array([SEQUENCE - 1, 2])
    feed["attention_mask"] = np.broadcast_to(mask, (BATCH, 1, *mask.shape)).copy()
    if in_place:
        feed["write_indices"] = np.full(BATCH, used)
    return feed


def run(model, folder, feed):
    """A graph in ONNX Runtime, with its weights from the folder."""
    path = folder / f".{model.graph.name}.test.onnx"
    path.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    finally:
        path.unlink()
    names = [output.name for output in session.get_outputs()]
    given = {value.name: feed[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.fixture(scope="module")
def whole(lower):
    """whole(target, size): a bundle, what its decoder is fed, and what comes out."""
    made = {}

    def make(target, size="tiny-7b"):
        if (target, size) not in made:
            bundle = lower(target, "fp32", size=size)
            feed = make_feed(bundle)
            made[target, size] = (
                bundle,
                feed,
                run(read_graph(bundle / "decoder.onnx"), bundle, feed),
            )
        return made[target, size]

    return make


@pytest.mark.parametrize(("num_parts", "separate_lm_head"), WAYS)
@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
def test_the_chain_gives_the_whole_graphs_numbers(whole, target, num_parts, separate_lm_head):
    bundle, feed, expected = whole(target)
    parts = load_parts(bundle, num_parts, separate_lm_head)
    assert len(parts) == num_parts + separate_lm_head
    values = dict(feed)
    for part in parts:
        values |= run(part.model, bundle, values)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=2e-6, err_msg=name)
    assert np.abs(expected["logits"]).max() > 0.1


def test_a_tied_head_and_two_layers_are_split_too(whole):
    bundle, feed, expected = whole("jetpack-6.2", "tiny")
    values = dict(feed)
    for part in load_parts(bundle, 2, True):
        values |= run(part.model, bundle, values)
    np.testing.assert_allclose(values["logits"], expected["logits"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
def test_between_parts_only_the_residual_stream_goes(whole, target):
    bundle, _, _ = whole(target)
    graph_outputs = {spec.name for spec in read_manifest(bundle).graphs["decoder"].outputs}
    graph_inputs = {spec.name: spec for spec in read_manifest(bundle).graphs["decoder"].inputs}
    *layers, head = load_parts(bundle, 3, True)
    for part in (*layers[:-1], layers[-1]):
        crossing = [spec for spec in part.outputs if spec.name not in graph_outputs]
        if part is layers[-1]:
            assert [spec.shape for spec in crossing] == [("batch", 112)]
        else:
            assert len(crossing) == 2  # the sum, and the branch that is yet to be added
            assert {spec.shape for spec in crossing} == {(TOKENS, 112)}
    assert [spec.name for spec in head.inputs if spec.name in graph_inputs] == []
    assert [spec.name for spec in head.outputs] == ["logits"]


def test_a_part_asks_for_its_own_layers_cache_and_for_no_embeddings(whole):
    bundle, _, _ = whole("jetpack-6.2")
    parts = load_parts(bundle, 3, False)
    for index, part in enumerate(parts):
        names = {spec.name for spec in part.inputs}
        assert {name for name in names if name.startswith("past")} == {
            f"past_key_values.{index}.key",
            f"past_key_values.{index}.value",
        }
        assert ("inputs_embeds" in names) == (index == 0)
        assert ("logit_index" in names) == (index == 2)
        made = {spec.name for spec in part.outputs}
        assert f"present.{index}.key" in made


def test_every_graph_input_and_output_is_in_some_part(whole):
    bundle, _, _ = whole("jetpack-7.2")
    spec = read_manifest(bundle).graphs["decoder"]
    parts = load_parts(bundle, 2, True)
    assert {s.name for s in spec.inputs} <= {s.name for part in parts for s in part.inputs}
    assert [s.name for part in parts for s in part.outputs if s in spec.outputs].count(
        "logits"
    ) == 1


def test_weights_stay_where_they_are(whole):
    bundle, _, _ = whole("jetpack-7.2")
    before = {entry.name: entry.stat().st_size for entry in os.scandir(bundle)}
    parts = load_parts(bundle, 3, True)
    assert {entry.name: entry.stat().st_size for entry in os.scandir(bundle)} == before
    names = []
    for part in parts:
        assert list_data_files(part.model) == ["decoder.onnx.data"]
        assert len(part.model.SerializeToString()) < 60_000
        names += [t.name for t in part.model.graph.initializer if t.external_data]
    whole_names = [
        tensor.name
        for tensor in read_graph(bundle / "decoder.onnx").graph.initializer
        if tensor.external_data
    ]
    assert sorted(names) == sorted(whole_names)  # each in one part


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_crosses_is_of_the_compute_type(lower, dtype):
    parts = load_parts(lower("jetpack-7.2", dtype), 2, False)
    crossing = [spec for spec in parts[0].outputs if not spec.name.startswith("present")]
    assert {spec.dtype for spec in crossing} == {{"bf16": "bfloat16", "fp16": "float16"}[dtype]}


def test_every_part_has_profiles_for_prompts_and_for_tokens(lower):
    bundle = lower("jetpack-6.2", "fp32", size="tiny-7b")
    settings = BuildSettings(prefill_tokens=8, context=32, max_batch=2)
    extents = derive_extents(read_manifest(bundle), settings)["decoder"]
    for part in load_parts(bundle, 3, True):
        profiles = shape_profiles(part.inputs, extents)
        assert [profile.use for profile in profiles] == ["prefill", "decode"]
        for spec in part.inputs:
            if spec.shape[0] == TOKENS:
                assert profiles[0].shapes[spec.name].max == (16, 112)
                assert profiles[1].shapes[spec.name].max == (2, 112)


def test_parts_are_valid_onnx(whole):
    bundle, _, _ = whole("jetpack-7.2")
    for part in load_parts(bundle, 2, True):
        for tensor in part.model.graph.initializer:  # the checker looks for files by itself
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            if not tensor.raw_data:
                tensor.raw_data = bytes(4 * int(np.prod(tensor.dims)))
        onnx.checker.check_model(part.model)


def test_more_parts_than_layers_are_refused(whole):
    bundle, _, _ = whole("jetpack-7.2")
    with pytest.raises(ValueError, match="the decoder has 3 layers: it can't be split in 4"):
        load_parts(bundle, 4, False)


def test_a_value_of_unknown_type_is_not_cut(whole):
    bundle, _, _ = whole("jetpack-7.2")
    spec = read_manifest(bundle).graphs["decoder"]
    model = read_graph(bundle / spec.file)
    for node in model.graph.node:  # an operator that shape inference doesn't know
        if "/layers.0/mlp/down_proj" in node.name and node.op_type in ("MatMul", "Gemm"):
            node.domain = "somewhere.else"
    model.opset_import.add(domain="somewhere.else", version=1)
    with pytest.raises(
        ValueError, match=r"would cross between two parts, with type \w+ and 0 dimensions"
    ):
        split_decoder(model, spec, 3, separate_lm_head=False)
