"""What a TensorRT export may be asked."""

import pytest

from vlmedge.export.lowering.options import DEFAULT_CONTEXT, LoweringOptions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "jetpack-5"}, "target is 'jetpack-5', needed one of jetpack-6.2"),
        ({"target": "jetpack-7.2", "device": "nano"}, "device is 'nano', needed one of orin, thor"),
        ({"target": "jetpack-7.2", "dtype": "int8"}, "dtype is 'int8', needed one of bf16"),
        ({"target": "jetpack-7.2", "dtype": "float16"}, "needed one of"),
        ({"target": "jetpack-7.2", "context": 0}, "context is 0"),
        ({"target": "jetpack-7.2", "context": -5}, "context is -5"),
        ({"target": "jetpack-6.2", "context": 64}, "give --context to vlmedge build"),
        ({"target": "jetpack-7.0", "context": 64}, "no context of its own"),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_made(arguments, words):
    with pytest.raises(ValueError, match=words):
        LoweringOptions(**arguments)


@pytest.mark.parametrize(
    ("dtype", "compute"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_the_compute_type_has_the_manifests_name(dtype, compute):
    assert LoweringOptions("jetpack-6.2", dtype).compute == compute


def test_bfloat16_is_what_is_not_asked_for():
    assert LoweringOptions("jetpack-6.2").compute == "bfloat16"


@pytest.mark.parametrize("target", ["jetpack-7.2", "tensorrt-11", "tensorrt-rtx"])
def test_the_cache_has_the_context_or_the_smaller_of_default_and_model(target):
    assert LoweringOptions(target, context=100).capacity(32768) == 100
    assert LoweringOptions(target, context=32768).capacity(32768) == 32768
    assert LoweringOptions(target).capacity(32768) == DEFAULT_CONTEXT
    assert LoweringOptions(target).capacity(512) == 512


def test_no_graph_of_an_appending_target_fixes_its_cache():
    assert LoweringOptions("jetpack-6.2").capacity(32768) is None


def test_more_context_than_the_model_has_positions_is_refused():
    with pytest.raises(ValueError, match="context is 513, the model has positions for 512"):
        LoweringOptions("jetpack-7.2", context=513).capacity(512)
