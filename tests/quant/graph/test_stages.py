"""A graph taken through its stages is the whole graph; what goes wrong in one is named."""

import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from vlmedge.quant.graph.files import locate, read_graph
from vlmedge.quant.graph.stages import Walk, cut_stages, keep_every_position, name_stage
from vlmedge.runtime import BundleError
from vlmedge.runtime.backends.ort.exact_products import make_entries
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

GRAPHS = ("vision", "vision_video", "decoder")


def make_feeds(bundle, questions, graph):
    """Of each picture, clip or prompt, what a graph gets."""
    manifest = read_manifest(bundle)
    prompts = make_prompts(bundle, manifest, questions.examples)
    if graph != "decoder":
        return [feed.tensors for feed in make_vision_feeds(prompts) if feed.graph == graph]
    table = Embeddings(bundle, manifest.embedding)
    noise = np.random.default_rng(0).standard_normal
    size = manifest.decoder.hidden_size
    return [
        make_decoder_feed(
            prompt, [noise((v.num_tokens, size), np.float32) for v in prompt.request.visuals], table
        )
        for prompt in prompts
    ]


def add_cache(bundle, feed):
    """The decoder's feed with an empty cache, as a host makes it."""
    spec = read_manifest(bundle).decoder
    shape = (1, spec.num_kv_heads, feed["inputs_embeds"].shape[1], spec.head_dim)
    names = [f"past_key_values.{i}.{p}" for i in range(spec.num_layers) for p in ("key", "value")]
    return feed | {name: np.zeros(shape, np.float32) for name in names}


def walk_through(bundle, graph, feeds, **options):
    model = read_graph(bundle, read_manifest(bundle), graph)
    walk = Walk(model, bundle, feeds, num_threads=1, **options)
    for index in range(len(walk.stages)):
        walk.run_stage(index)
    return walk


@pytest.mark.parametrize(
    ("node", "stage"),
    [
        ("/visual/blocks.0/norm1/LayerNorm", "visual.blocks.0"),
        ("/visual/blocks.31/mlp/fc2/MatMul", "visual.blocks.31"),
        ("/visual/rotary/Cos", "embed"),
        ("/visual/merger.ln_q/SkipLayerNorm", "head"),
        ("/visual/merger/mlp.0/MatMul", "head"),
        ("/visual/image_embeds/Reshape", "head"),
        ("/model/layers.7/attn/GroupQueryAttention", "model.layers.7"),
        ("/model/norm/SkipRMSNorm", "head"),
        ("/lm_head/MatMul", "head"),
        ("/model/rotary/Sin", "embed"),
    ],
)
def test_a_nodes_name_says_its_stage(node, stage):
    assert name_stage(node) == stage


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_node_is_in_one_stage_and_stages_come_in_order(make_bundle, weights, graph):
    bundle = make_bundle("tiny", weights).bundle
    model = read_graph(bundle, read_manifest(bundle), graph)
    stages = cut_stages(model.graph)
    layers = "model.layers" if graph == "decoder" else "visual.blocks"
    assert [s.name for s in stages] == ["embed", f"{layers}.0", f"{layers}.1", "head"]
    members = [index for stage in stages for index in stage.nodes]
    assert sorted(members) == list(range(len(model.graph.node)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_stages_inputs_are_there_before_it_runs(make_bundle, graph):
    bundle = make_bundle("tiny").bundle
    model = read_graph(bundle, read_manifest(bundle), graph)
    there = {value.name for value in model.graph.input}
    for stage in cut_stages(model.graph):
        assert set(stage.inputs) <= there
        there |= set(stage.outputs)
    assert {value.name for value in model.graph.output} <= there


@pytest.mark.parametrize("preset", [None, "cpu", "thor"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_stage_by_stage_is_the_whole_graph(
    make_bundle, quantize, questions, run_graph, preset, graph
):
    bundle = quantize(preset).bundle if preset else make_bundle("tiny").bundle
    feeds = make_feeds(bundle, questions, graph)
    keep_qdq = read_manifest(bundle).graphs[graph].keep_qdq
    walk = walk_through(bundle, graph, feeds, keep_qdq=keep_qdq)
    name = "logits" if graph == "decoder" else "image_embeds"
    for feed, live in zip(feeds, walk.live, strict=True):
        whole = add_cache(bundle, feed) if graph == "decoder" else feed
        np.testing.assert_array_equal(live[name], run_graph(bundle, graph, whole, [name])[name])


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_taps_are_the_values_in_the_whole_graph(make_bundle, questions, graph, tmp_path):
    bundle = make_bundle("tiny").bundle
    model = read_graph(bundle, read_manifest(bundle), graph)
    feed = make_feeds(bundle, questions, graph)[0]
    walk = Walk(model, bundle, [feed], num_threads=1)
    wanted, seen = [], {}
    for index, stage in enumerate(walk.stages):
        gemms = [i for i in stage.nodes if model.graph.node[i].op_type == "Gemm"]
        taps = [model.graph.node[i].input[0] for i in gemms]
        walk.run_stage(index, taps, lambda _, values: seen.update(values))
        wanted += taps
    assert list(seen) == wanted

    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    shutil.copytree(bundle, tmp_path / "bundle")
    onnx.save(model, tmp_path / "bundle" / "tapped.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in make_entries(tmp_path / "bundle" / "tapped.onnx", keep_qdq=False).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(tmp_path / "bundle" / "tapped.onnx", options)
    whole = add_cache(bundle, feed) if graph == "decoder" else feed
    for name, value in zip(wanted, session.run(wanted, whole), strict=True):
        np.testing.assert_allclose(seen[name], value, rtol=0, atol=1e-5)


def test_only_what_later_stages_need_stays_in_memory(make_bundle, questions):
    bundle = make_bundle("tiny").bundle
    feeds = make_feeds(bundle, questions, "decoder")
    model = read_graph(bundle, read_manifest(bundle), "decoder")
    walk = Walk(model, bundle, feeds, num_threads=1, keep_outputs=False)
    for index, stage in enumerate(walk.stages):
        # the last stage runs only where something of it is asked for
        walk.run_stage(index, ["logits"] if stage.name == "head" else [])
        later = {name for other in walk.stages[index + 1 :] for name in other.inputs}
        for live in walk.live:
            assert set(live) <= later
        if stage.name == "embed":
            assert "position_ids" not in walk.live[0]
    assert all(not live for live in walk.live)  # no logits, no cache


def test_walks_of_no_inputs_go_through_as_well(make_bundle):
    walk = walk_through(make_bundle("tiny").bundle, "vision_video", [])
    assert walk.live == []


def test_inputs_do_not_touch_each_other(make_bundle, questions):
    bundle = make_bundle("tiny").bundle
    feeds = make_feeds(bundle, questions, "vision")
    assert len({feed["pixel_values"].shape for feed in feeds}) > 1
    together = walk_through(bundle, "vision", feeds).live
    for feed, live in zip(feeds, together, strict=True):
        (alone,) = walk_through(bundle, "vision", [feed]).live
        np.testing.assert_array_equal(live["image_embeds"], alone["image_embeds"])


def test_a_fork_goes_its_own_way_and_joins_behind(make_bundle, questions):
    bundle = make_bundle("tiny").bundle
    feeds = make_feeds(bundle, questions, "vision")[:2]
    model = read_graph(bundle, read_manifest(bundle), "vision")
    walk = Walk(model, bundle, feeds, num_threads=1)
    walk.run_stage(0)
    fork = walk.fork()
    fork.run_stage(1, change=lambda stage: zero_weights(stage))
    walk.run_stage(1)
    walk.join(fork)
    for index in (2, 3):
        walk.run_stage(index)
    plain = walk_through(bundle, "vision", feeds).live
    for live, needed in zip(walk.live[:2], plain, strict=True):
        np.testing.assert_array_equal(live["image_embeds"], needed["image_embeds"])
    for live, other in zip(walk.live[2:], plain, strict=True):
        assert not np.array_equal(live["image_embeds"], other["image_embeds"])


def zero_weights(stage):
    changed = onnx.ModelProto()
    changed.CopyFrom(stage)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith("fc2.weight"):
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return changed


@pytest.mark.parametrize(
    ("graph", "layer", "initializer"),
    [
        ("vision", "visual.blocks.1", "visual.blocks.1.norm2.weight"),
        ("vision", "head", "visual.merger.mlp.2.weight"),
        ("decoder", "model.layers.0", "model.layers.0.mlp.down_proj.weight"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_name_the_layer(
    make_bundle, questions, tmp_path, graph, layer, initializer, value, renew_records
):
    bundle = shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle")
    model = read_graph(bundle, read_manifest(bundle), graph)
    (tensor,) = (t for t in model.graph.initializer if t.name == initializer)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        file, offset, _ = locate(tensor)
        with (bundle / file).open("r+b") as stream:
            stream.seek(offset)
            stream.write(np.float32(value).tobytes())
    else:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[0] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, initializer))
        onnx.save(model, bundle / f"{graph}.onnx")
    renew_records(bundle)
    with pytest.raises(BundleError, match=f"in {layer} holds NaN or infinite"):
        walk_through(bundle, graph, make_feeds(bundle, questions, graph)[:1])


def test_what_a_stage_needs_must_have_been_given(make_bundle):
    feed = {"position_ids": np.zeros((1, 4, 2), np.int64)}
    with pytest.raises(BundleError, match="needs pixel_values, which was not given"):
        walk_through(make_bundle("tiny").bundle, "vision", [feed])


def test_logits_of_every_position_are_those_of_reading_step_by_step(
    make_bundle, questions, run_graph
):
    bundle = make_bundle("tiny").bundle
    feed = make_feeds(bundle, questions, "decoder")[0]
    model = keep_every_position(read_graph(bundle, read_manifest(bundle), "decoder"))
    walk = Walk(model, bundle, [feed], num_threads=1)
    for index in range(len(walk.stages)):
        walk.run_stage(index)
    found = walk.live[0]["logits"]
    num_tokens = feed["inputs_embeds"].shape[1]
    assert len(found) == num_tokens
    # one token after another into a cache as long as the whole text, as the runtime decodes
    cache = {k: v for k, v in add_cache(bundle, feed).items() if k.startswith("past")}
    for step in range(num_tokens):
        token = {
            "inputs_embeds": feed["inputs_embeds"][:, step : step + 1],
            "position_ids": feed["position_ids"][:, :, step : step + 1],
            "seqlens_k": np.array([step], np.int32),
            "total_sequence_length": np.array(step + 1, np.int32),
            "logit_index": np.array([0], np.int64),
        }
        out = run_graph(bundle, "decoder", token | cache)
        np.testing.assert_allclose(found[step], out.pop("logits")[0], rtol=0, atol=2e-5)
        cache = {name.replace("present", "past_key_values"): v for name, v in out.items()}


def test_the_decoder_itself_keeps_its_one_position(make_bundle):
    bundle = make_bundle("tiny").bundle
    model = read_graph(bundle, read_manifest(bundle), "decoder")
    before = model.SerializeToString(deterministic=True)
    keep_every_position(model)
    assert model.SerializeToString(deterministic=True) == before
