"""Whole quantizations: presets answer, calibration files stand for data, errors name layers."""

import json
import os
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlmedge.quant.graph.feeds import make_prompts, make_vision_feeds
from vlmedge.quant.graph.files import locate
from vlmedge.quant.quantize.calibration import read_calibration
from vlmedge.quant.quantize.quantize import plan_bundle, quantize_bundle
from vlmedge.quant.recipe.preset_names import list_presets
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.runtime import BundleError, GenerationOptions, Model
from vlmedge.runtime.bundle.manifest_file import read_manifest

INT8 = 'name = "int8"\n[vision]\nformat = "int8"\n[decoder]\nformat = "int8"\n'
FP8 = 'name = "fp8"\n[vision]\nformat = "fp8"\nranges = "minmax"\nsmooth = 0.5\n'
# Quick: nothing is searched for
PLAIN = 'ranges = "minmax"\nsmooth = "off"\nshift = "off"\n'
QUICK = f'name = "quick"\n[vision]\nformat = "int8"\n{PLAIN}[decoder]\nformat = "int8"\n{PLAIN}'
CACHED = QUICK + '[kv_cache]\nformat = "int8-channel"\n[attention]\nvision = "fp8"\n'


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(source, target, text, data=None, **options):
    recipe = parse_recipe(text, "r")
    return quantize_bundle(source, target, recipe, data, num_threads=1, **options)


def stop_at(stage, error):
    def progress(done, total, name):
        if done == stage:
            raise error

    return progress


@pytest.fixture(scope="module")
def source(make_bundle):
    return make_bundle("tiny").bundle


@pytest.mark.parametrize("preset", list_presets())
def test_a_presets_bundle_answers_for_pictures_and_clips(quantize, questions, preset):
    made = quantize(preset)
    options = GenerationOptions(max_new_tokens=3, do_sample=False)
    with Model.load(made.bundle, providers="cpu", num_threads=1) as model:
        for example in questions.examples:
            assert model.chat(example.messages, options).token_ids


# Relative L2 of merged embeddings and of logits: what the formats' own steps allow on noise.
LIMITS = {"accurate": 0.02, "cpu": 0.03, "orin": 0.3, "smallest": 0.4, "thor": 0.12}


@pytest.mark.parametrize("preset", list_presets())
def test_a_presets_pictures_stay_near_the_float_ones(quantize, questions, run_graph, preset):
    made = quantize(preset)
    prompts = make_prompts(made.source, read_manifest(made.source), questions.examples)
    for feed in make_vision_feeds(prompts):
        exact, got = (
            run_graph(folder, feed.graph, feed.tensors)["image_embeds"]
            for folder in (made.source, made.bundle)
        )
        assert np.linalg.norm(got - exact) < LIMITS[preset] * np.linalg.norm(exact)
        assert not np.array_equal(got, exact)


@pytest.mark.parametrize("text", [INT8, "cpu"])
def test_int8_layers_are_run_by_integer_kernels(quantize, tmp_path, text):
    made = quantize(text)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(made.bundle / "vision.onnx", options, ["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    ran = [node.op_type for node in optimized.graph.node]
    layers = [e for e in made.manifest.coverage if e.graph == "vision" and "int8" in e.precision]
    assert ran.count("QGemm") == len(layers) == 10
    assert ran.count("Gemm") == 1  # the patch embedding


@pytest.mark.parametrize("text", [INT8, FP8, CACHED])
def test_a_calibration_file_stands_for_the_data(source, questions, quantize, tmp_path, text):
    found = tmp_path / "found.json"
    run(source, tmp_path / "q", text, questions, calibration_file=found)
    assert read_files(tmp_path / "q") == read_files(quantize(text).bundle)
    again = run(source, tmp_path / "again", text, calibration_file=found)
    assert read_files(tmp_path / "again") == read_files(tmp_path / "q")
    assert again.errors == {}
    assert sorted(os.listdir(tmp_path)) == ["again", "found.json", "q"]


def test_a_number_changed_in_the_file_is_a_number_changed_in_the_bundle(
    source, questions, tmp_path
):
    found, layer = tmp_path / "found.json", "visual.blocks.1.mlp.fc2"
    run(source, tmp_path / "q", QUICK, questions, calibration_file=found)
    # an interrupted run with the file as it was
    with pytest.raises(KeyboardInterrupt):
        run(
            *(source, tmp_path / "r", QUICK),
            calibration_file=found,
            progress=stop_at(6, KeyboardInterrupt()),
        )
    content = json.loads(found.read_text())
    content["layers"][layer]["range"]["amax"] *= 2
    found.write_text(json.dumps(content))
    assert run(source, tmp_path / "r", QUICK, calibration_file=found).resumed == 0
    scales = []
    for folder in ("q", "r"):
        model = onnx.load(tmp_path / folder / "vision.onnx", load_external_data=False)
        tensors = {t.name: t for t in model.graph.initializer}
        scales.append(onnx.numpy_helper.to_array(tensors[f"{layer}.input_scale"]))
    np.testing.assert_allclose(scales[1], 2 * scales[0], rtol=1e-6)


def test_a_calibration_file_of_something_else_is_refused(source, questions, make_bundle, tmp_path):
    found = tmp_path / "found.json"
    run(source, tmp_path / "q", QUICK, questions, calibration_file=found)
    with pytest.raises(ValueError, match="another model"):
        run(make_bundle("tiny", seed=1).bundle, tmp_path / "r", QUICK, calibration_file=found)
    other = QUICK.replace('smooth = "off"', "smooth = 0.5")
    with pytest.raises(ValueError, match=r"layer visual\.blocks\.0\.attn\.qkv.*--data"):
        run(source, tmp_path / "r", other, calibration_file=found)
    cached = QUICK + '[kv_cache]\nformat = "int8-tensor"\n'
    with pytest.raises(ValueError, match=r"cache\.key needs calibration: give --data"):
        run(source, tmp_path / "r", cached, calibration_file=found)
    gptq = QUICK.replace("[decoder]", '[decoder]\nmethod = "gptq"')
    with pytest.raises(ValueError, match=r"layer model\.layers\.0\..*--data"):
        run(source, tmp_path / "r", gptq, calibration_file=found)
    assert not (tmp_path / "r").exists()


def test_every_layer_that_was_calibrated_is_in_the_file_with_clips_counted(
    source, questions, tmp_path
):
    found = tmp_path / "found.json"
    result = run(source, tmp_path / "q", CACHED, questions, calibration_file=found)
    calibration = read_calibration(found, json.loads(found.read_text())["model"])
    static = {n for n, p in result.plan.layers.items() if p.recipe.format == "int8"}
    observed = {
        *(f"model.layers.{i}.self_attn.cache.{p}" for i in (0, 1) for p in ("key", "value")),
        *(
            f"visual.blocks.{i}.attn.products.{f}"
            for i in (0, 1)
            for f in ("query", "key", "value")
        ),
    }
    assert set(calibration.layers) == static | observed
    # patches: 84x56, 56x84 and 56x56 pixels, and a clip of two slices of 56x84
    rows = (6 * 4) + (4 * 6) + (4 * 4) + 2 * (4 * 6)
    assert calibration.layers["visual.blocks.0.attn.qkv"].stats.count == rows
    assert calibration.layers["visual.merger.mlp.0"].stats.count == rows // 4


def test_data_that_is_not_needed_measures_errors_and_changes_nothing(
    source, questions, quantize, tmp_path
):
    recipe = open_recipe("cpu")
    result = quantize_bundle(source, tmp_path / "q", recipe, questions, num_threads=1)
    assert set(result.errors) == set(result.plan.layers)
    files, needed = read_files(tmp_path / "q"), read_files(quantize("cpu").bundle)
    for name in set(files) - {"manifest.json"}:
        assert files[name] == needed[name]


@pytest.mark.parametrize("preset", ["orin", "smallest", "thor"])
def test_nothing_is_ever_calibrated_on_random_data(source, tmp_path, preset):
    with pytest.raises(ValueError, match=r"needs real pictures.*never calibrated|nothing is ever"):
        quantize_bundle(source, tmp_path / "q", open_recipe(preset))
    assert os.listdir(tmp_path) == []


def test_a_recipe_of_static_pictures_needs_pictures(source, questions, tmp_path):
    text_only = type(questions.examples[0])("t", ({"role": "user", "content": "Hello"},))
    data = type(questions)("text", "d" * 64, (text_only,), {})
    with pytest.raises(ValueError, match="none of the 1 examples of text has a picture"):
        run(source, tmp_path / "q", QUICK, data)


def test_what_is_quantized_already_or_is_the_source_itself_is_refused(source, quantize, tmp_path):
    for preset in ("cpu", "thor"):
        with pytest.raises(BundleError, match="quantized already"):
            quantize_bundle(quantize(preset).bundle, tmp_path / "q", open_recipe("cpu"))
    with pytest.raises(ValueError, match="is what is read"):
        quantize_bundle(source, source, open_recipe("cpu"))
    with pytest.raises(ValueError, match="is what is read"):
        quantize_bundle(source, source / ".." / source.name, open_recipe("cpu"))
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="is what is read"):
        quantize_bundle(source, tmp_path / "link", open_recipe("cpu"))
    assert read_manifest(source).quantization is None


def test_activations_that_are_no_numbers_name_their_layer(
    source, questions, tmp_path, renew_records
):
    broken = shutil.copytree(source, tmp_path / "float")
    model = onnx.load(broken / "vision.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == "visual.blocks.1.norm1.weight":
            size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * tensor.dims[0]
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = np.full(size // 4, np.nan, np.float32).tobytes()
    onnx.save(model, broken / "vision.onnx")
    renew_records(broken)
    with pytest.raises(BundleError, match=r"in visual\.blocks\.1 holds NaN"):
        run(broken, tmp_path / "q", QUICK, questions)
    assert not (tmp_path / "q").exists()


def test_progress_is_told_stage_by_stage(source, tmp_path):
    steps = []
    recipe = open_recipe("accurate")
    quantize_bundle(
        source, tmp_path / "q", recipe, progress=lambda *step: steps.append(step), num_threads=1
    )
    hashes = [step for step in steps if step[2].startswith("comparing the hashes of ")]
    assert hashes
    assert steps[: len(hashes)] == hashes
    del steps[: len(hashes)]
    assert [done for done, _, _ in steps] == list(range(8))
    assert {total for _, total, _ in steps} == {8}
    names = ["embed", "visual.blocks.0", "visual.blocks.1", "head"]
    assert [name for _, _, name in steps][:4] == names


def test_bytes_written_are_told(source, tmp_path):
    counts = []
    made = quantize_bundle(source, tmp_path / "q", open_recipe("cpu"), advance=counts.append)
    places = set()
    for spec in made.manifest.graphs.values():
        model = onnx.load(tmp_path / "q" / spec.file, load_external_data=False)
        places |= {locate(t) for t in model.graph.initializer if t.external_data}
    assert sum(counts) == sum(length for _, _, length in places)


def test_a_plan_can_be_had_without_quantizing(source):
    plan = plan_bundle(source, read_manifest(source), open_recipe("orin"))
    assert plan.layers["lm_head"].recipe.format == "int8-weight"
    assert len(plan.layers) == 19
