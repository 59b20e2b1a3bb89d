"""What stands on a device: graphs of the right flavor, and what does not go together."""

import dataclasses

import pytest

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.sources import open_model
from vlmedge.export.planning.this_machine import Found, recognize

NANO, THOR = DEVICES["orin-nano-8gb"], DEVICES["thor"]
MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: 15000000 kB\n"
CPU = recognize(Found("", MEMINFO))
GPU = recognize(Found("", MEMINFO, "NVIDIA L4, 8.9, 23034, 22000"))


@pytest.mark.parametrize(
    ("device", "target", "in_place"),
    [(NANO, "jetpack-6.2", False), (THOR, "jetpack-7.2", True), (GPU, "tensorrt-11", True)],
)
def test_a_device_has_its_usual_target(model, device, target, in_place):
    setup = make_setup(model(), device)
    assert setup.target is not None
    assert setup.target.name == target
    assert setup.in_place == in_place
    assert setup.costing.fused_decoder == in_place
    assert setup.cache_element_bytes == 2


def test_without_a_gpu_it_is_onnx_runtime_in_float32(model):
    setup = make_setup(model(), CPU)
    assert setup.target is None
    assert setup.cache_element_bytes == 4
    assert setup.weights["lm_head"] == 4 * 151936 * 1536


@pytest.mark.parametrize(("recipe", "share"), [("orin", 0.25), ("accurate", 0.28), ("cpu", 0.26)])
def test_a_recipe_shrinks_the_weights(model, recipe, share):
    whole = sum(make_setup(model(), CPU).weights.values())
    assert sum(make_setup(model(), CPU, recipe).weights.values()) < whole * share * 1.1


def test_parts_are_those_of_2b_in_bfloat16(model):
    """Published: 2 bytes a parameter, and what stays float32."""
    weights = make_setup(model(), NANO).weights
    assert weights["lm_head"] == 466_747_392
    assert weights["vision"] == pytest.approx(2 * 665_271_296, rel=0.001)
    assert weights["decoder"] == pytest.approx(2 * (1_543_714_304 - 233_373_696), rel=0.001)


def test_an_engines_size_is_that_of_the_2b_that_was_built(model):
    """TensorRT-RTX made 4400 MiB of 2944 MiB of weights; of int4 it made no more than there was."""
    setup = make_setup(model(), NANO)
    decoder = setup.weights["decoder"] + setup.weights["lm_head"]
    assert decoder >> 20 == 2944
    assert (decoder + setup.repeated_bytes) / 2**20 == pytest.approx(4400, rel=0.01)
    assert make_setup(model(), NANO, "orin").repeated_bytes == 0
    assert make_setup(model(), CPU).repeated_bytes == 0


def test_layers_of_the_decoder_add_up(model):
    setup = make_setup(model(), NANO, "orin")
    assert sum(setup.layer_bytes) == setup.weights["decoder"]
    assert len(setup.layer_bytes) == 28
    assert max(setup.layer_bytes) - min(setup.layer_bytes) < 100_000


def test_fp8_is_refused_on_an_orin_with_what_to_do(model):
    with pytest.raises(ValueError, match=r"orin has no arithmetic for: .*--recipe orin"):
        make_setup(model(), NANO, "thor")
    assert make_setup(model(), THOR, "thor").target is not None


def test_a_target_of_another_board_is_refused(model):
    with pytest.raises(ValueError, match="comes with orin, not with thor"):
        make_setup(model(), THOR, target="jetpack-6.2")


def test_a_target_without_a_gpu_is_refused(model):
    with pytest.raises(ValueError, match="runs none"):
        make_setup(model(), CPU, target="jetpack-6.2")


def test_an_unknown_target_is_named(model):
    with pytest.raises(ValueError, match="target is 'jetpack-5'"):
        make_setup(model(), NANO, target="jetpack-5")


def test_a_table_that_can_not_be_the_heads_is_planned_as_int8(model):
    opened = model("7b")
    setup = make_setup(opened, NANO, "orin")
    shapes = opened.shapes
    assert setup.table_bytes == shapes.table_rows * (shapes.hidden_size + 4)


def test_a_quantized_bundle_takes_no_recipe(quantized):
    opened = open_model(quantized("cpu").bundle)
    with pytest.raises(ValueError, match="leave --recipe out"):
        make_setup(opened, NANO, "orin")
    assert make_setup(opened, CPU).costing.precision.name == "cpu"


def test_a_float_bundle_takes_a_recipe(make_bundle):
    made = make_bundle("tiny")
    on_bundle = make_setup(open_model(made.bundle), NANO, "orin")
    on_checkpoint = make_setup(open_model(made.checkpoint), NANO, "orin")
    assert on_bundle.weights == on_checkpoint.weights


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
@pytest.mark.parametrize("recipe", ["float", "orin"])
def test_a_plan_of_the_recipe_is_that_of_the_bundle_it_becomes(
    lowered, make_bundle, recipe, target
):
    """Planned before anything is written, and read back from what was."""
    planned = make_setup(open_model(make_bundle("tiny").checkpoint), NANO, recipe, target=target)
    written = make_setup(open_model(lowered(recipe, target).bundle), NANO)
    assert written.target == planned.target
    for part, nbytes in planned.weights.items():
        constants = 1000  # of the graph: scales of activations, shapes
        assert 0 <= written.weights[part] - nbytes < constants, part
    assert written.table_bytes in (planned.table_bytes, planned.table_bytes - 320 * 64 * 2)


def test_a_cache_in_place_has_its_graphs_size(model, lowered):
    assert make_setup(model(), NANO).find_context(None) is None
    assert make_setup(model(), NANO).find_context(9000) == 9000
    assert make_setup(model(), THOR).find_context(None) == 4096
    assert make_setup(model(), THOR).find_context(9000) == 9000
    fixed = make_setup(open_model(lowered("float", "jetpack-7.2").bundle), THOR)
    assert fixed.find_context(None) == fixed.find_context(4096) == 4096
    with pytest.raises(ValueError, match="fixes 4096: export it with --context 9000"):
        fixed.find_context(9000)


def test_count_scores_is_kept(model):
    assert not make_setup(model(), NANO, count_scores=True).costing.fused_vision


def test_a_lowered_bundle_is_planned_on_a_cpu_too(lowered):
    opened = open_model(lowered("float", "jetpack-6.2").bundle)
    setup = make_setup(opened, CPU)
    assert setup.cache_element_bytes == 2
    assert dataclasses.replace(setup, device=NANO).weights == setup.weights
