"""Layers are calibrated with what the float model puts into them, pictures and clips alike."""

import dataclasses
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from vlmedge.quant.graph.files import read_graph
from vlmedge.quant.graph.linears import list_linears
from vlmedge.quant.graph.stages import keep_every_position
from vlmedge.quant.quantize.model_quantizer import ModelQuantizer
from vlmedge.quant.quantize.plan import make_plan
from vlmedge.quant.quantize.work_folder import WorkFolder
from vlmedge.quant.recipe.recipe import LayerException, LinearRecipe, Recipe
from vlmedge.quant.rounding.histogram import ActivationStats
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest

STATIC = LinearRecipe("int8", ranges="minmax", smooth="off", shift="off")
ALL = Recipe("all", vision=STATIC, decoder=STATIC, lm_head=STATIC)


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


def plan(bundle, recipe):
    manifest = read_manifest(bundle)
    graphs = {name: read_graph(bundle, manifest, name).graph for name in ("vision", "decoder")}
    return make_plan(recipe, {name: list_linears(graph) for name, graph in graphs.items()})


def quantize(bundle, examples, recipe, folder):
    manifest = read_manifest(bundle)
    prompts = make_prompts(bundle, manifest, examples)
    work = WorkFolder(folder / "q", recipe.name)
    quantizer = ModelQuantizer(
        bundle, manifest, plan(bundle, recipe), prompts=prompts, work=work, num_threads=1
    )
    return quantizer.run()


def observe(bundle, examples, folder):
    """Input of every linear layer, by onnxruntime from whole graphs: name -> rows of all."""
    manifest = read_manifest(bundle)
    prompts = make_prompts(bundle, manifest, examples)
    seen, embeds = {}, [[] for _ in prompts]
    shutil.copytree(bundle, folder / "tapped")

    def open_tapped(name):
        model = read_graph(bundle, manifest, name)
        if name == "decoder":  # rows of every position, not of the last one
            model = keep_every_position(model)
        linears = list_linears(model.graph)
        taps = list(dict.fromkeys(linear.input for linear in linears))
        model.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in taps)
        onnx.save(model, folder / "tapped" / f"{name}.tapped.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(folder / "tapped" / f"{name}.tapped.onnx", options)
        by_input = {}
        for linear in linears:
            by_input.setdefault(linear.input, []).append(linear.name)
        return session, taps, list(by_input.values())

    def keep(taps, names, values):
        for layer_names, value in zip(names, values, strict=True):
            for layer in layer_names:
                seen.setdefault(layer, []).append(value.reshape(-1, value.shape[-1]))

    tapped = {name: open_tapped(name) for name in ("vision", "vision_video", "decoder")}
    for feed in make_vision_feeds(prompts):
        session, taps, names = tapped[feed.graph]
        image_embeds, *values = session.run(["image_embeds", *taps], feed.tensors)
        embeds[feed.prompt].append(image_embeds)
        keep(taps, names, values)
    session, taps, names = tapped["decoder"]
    table, spec = Embeddings(bundle, manifest.embedding), manifest.decoder
    for prompt, visual in zip(prompts, embeds, strict=True):
        feed = make_decoder_feed(prompt, visual, table)
        shape = (1, spec.num_kv_heads, feed["inputs_embeds"].shape[1], spec.head_dim)
        for i in range(spec.num_layers):
            for part in ("key", "value"):
                feed[f"past_key_values.{i}.{part}"] = np.zeros(shape, np.float32)
        keep(taps, names, session.run(taps, feed))
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def test_statistics_are_of_the_float_models_own_activations(bundle, questions, tmp_path):
    result = quantize(bundle, questions.examples, ALL, tmp_path)
    needed = observe(bundle, questions.examples, tmp_path)
    assert list(result.calibration) == list(plan(bundle, ALL).layers)
    for name, layer in result.calibration.items():
        rows = needed[name]
        assert layer.stats.count == len(rows), name
        amax = np.abs(rows).max(axis=0)
        np.testing.assert_allclose(layer.stats.channel_amax, amax, rtol=1e-4, atol=1e-5)
        mean = np.square(rows, dtype=np.float64).mean(axis=0)
        np.testing.assert_allclose(layer.stats.channel_mean_square, mean, rtol=1e-3, atol=1e-7)


def test_clips_are_calibrated_as_pictures_are(bundle, questions, tmp_path):
    pictures, clip = questions.examples[:2], questions.examples[2:]
    both, parts = quantize(bundle, questions.examples, ALL, tmp_path), []
    for number, examples in enumerate((pictures, clip)):
        (tmp_path / str(number)).mkdir()
        parts.append(quantize(bundle, examples, ALL, tmp_path / str(number)))
    for name, layer in both.calibration.items():
        one, other = (part.calibration[name].stats for part in parts)
        assert isinstance(layer.stats, ActivationStats)
        assert layer.stats.count == one.count + other.count
        largest = np.maximum(one.channel_amax, other.channel_amax)
        np.testing.assert_array_equal(layer.stats.channel_amax, largest)


def test_what_becomes_of_one_layer_changes_nothing_that_another_sees(bundle, questions, tmp_path):
    # Layers are judged one by one: all see the float model, whatever stands before them.
    last = LayerException("lm_head", "int8")
    alone = Recipe("one", lm_head=STATIC, layers=(last,))
    (tmp_path / "alone").mkdir()
    one = quantize(bundle, questions.examples, alone, tmp_path / "alone")
    all_ = quantize(bundle, questions.examples, ALL, tmp_path)
    assert list(one.calibration) == ["lm_head"]
    assert set(one.errors) == {"lm_head"}
    stats = [result.calibration["lm_head"].stats.to_dict() for result in (one, all_)]
    assert stats[0] == stats[1]


def test_nothing_is_kept_of_layers_that_stay_float(bundle, questions, tmp_path):
    result = quantize(bundle, questions.examples, Recipe("float"), tmp_path)
    assert result.calibration == result.errors == {}
    for stages in result.stages.values():
        for stage in stages.values():
            assert stage.linears == stage.replaced == {}


def list_errors(reader, recipe, patterns, folder):
    """Of the layers that fit: as quantized, and rounded to nearest."""
    layers = tuple(LayerException(pattern, recipe.format) for pattern in patterns)
    part = dataclasses.replace(recipe, format="float")
    whole = Recipe("x", vision=part, decoder=part, layers=layers)
    result = quantize(reader.bundle, reader.data.examples[::2], whole, folder)
    errors = result.errors.values()
    return (np.array([getattr(e, key) for e in errors]) for key in ("chosen", "nearest"))


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_calibrated_roundings_beat_the_nearest_on_a_trained_model(reader, method, tmp_path):
    recipe = LinearRecipe("int4-weight", method, 64)
    patterns = ("visual.blocks.1.attn.*", "model.layers.2.*_proj")
    chosen, nearest = list_errors(reader, recipe, patterns, tmp_path)
    assert len(chosen) == 6
    assert chosen.mean() < 0.9 * nearest.mean()
    assert (chosen < nearest).mean() > 0.8


def test_static_int8_beats_the_nearest_on_a_trained_model(reader, tmp_path):
    recipe = LinearRecipe("int8", "gptq")
    chosen, nearest = list_errors(reader, recipe, ("visual.blocks.[13].*",), tmp_path)
    assert len(chosen) == 8
    assert chosen.mean() < 0.8 * nearest.mean()
    assert chosen.max() < 0.05
