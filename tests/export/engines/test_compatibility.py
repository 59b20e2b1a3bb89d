"""What goes together: told before a build, with what to do instead."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.compatibility import (
    INSTEAD,
    LEAST_CAPABILITY,
    check_dtype,
    check_precisions,
    check_versions,
    find_suited_target,
    read_version,
)
from vlmedge.export.lowering.targets import TARGETS
from vlmedge.runtime.backends.trt.engine_set import Gpu
from vlmedge.runtime.bundle.manifest import CoverageEntry, TargetRecord
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError

ORIN, THOR = Gpu("Orin", "8.7"), Gpu("NVIDIA Thor", "11.0")
# From NVIDIA's tables of devices, written out: which has arithmetic for what
HAS = {
    "7.5": set(),
    "8.0": {"bfloat16", "int4"},
    "8.6": {"bfloat16", "int4"},
    "8.7": {"bfloat16", "int4"},
    "8.9": {"bfloat16", "int4", "float8_e4m3fn"},
    "9.0": {"bfloat16", "int4", "float8_e4m3fn"},
    "10.0": {"bfloat16", "int4", "float8_e4m3fn", "float4_e2m1"},
    "11.0": {"bfloat16", "int4", "float8_e4m3fn", "float4_e2m1"},
    "12.0": {"bfloat16", "int4", "float8_e4m3fn", "float4_e2m1"},
}


@pytest.fixture(scope="module")
def manifest(lower):
    return read_manifest(lower("jetpack-7.2", "fp16"))


def with_layers(manifest, precision, count=1, graph="decoder"):
    entries = [
        CoverageEntry(f"model.layers.{i}.mlp.down_proj", "linear", graph, precision, "recipe")
        for i in range(count)
    ]
    kept = CoverageEntry("lm_head", "linear", "decoder", "float16", "--dtype")
    return dataclasses.replace(manifest, coverage=(*entries, kept))


def check(manifest, gpu, graphs=("vision", "decoder")):
    check_precisions(manifest, manifest.target, gpu, set(graphs))


@pytest.mark.parametrize("sm", HAS)
@pytest.mark.parametrize("precision", ["float8_e4m3fn", "int4 block 64", "float4_e2m1 block 16"])
def test_a_precision_is_refused_where_the_gpu_has_no_arithmetic_for_it(manifest, sm, precision):
    bundle = with_layers(manifest, precision)
    if precision.split()[0] in HAS[sm]:
        check(bundle, Gpu("", sm))
    else:
        with pytest.raises(BackendError, match="has no arithmetic for it"):
            check(bundle, Gpu("", sm))


@pytest.mark.parametrize("precision", ["float16", "float32", "int8 static", "int8 block 128"])
def test_other_precisions_are_taken_everywhere(manifest, precision):
    for sm in HAS:
        check(with_layers(manifest, precision), Gpu("", sm))


def test_fp8_on_an_orin_is_counted_named_and_sent_to_the_orin_recipe(manifest):
    with pytest.raises(BackendError) as caught:
        check(with_layers(manifest, "float8_e4m3fn", 28), ORIN)
    assert str(caught.value) == (
        "28 of 29 layers are float8_e4m3fn (model.layers.0.mlp.down_proj, "
        "model.layers.1.mlp.down_proj, model.layers.2.mlp.down_proj and 25 more), Orin (compute "
        "capability 8.7) has no arithmetic for it (that begins at 8.9): quantize it with --recipe "
        "orin instead (INT8 ViT, INT4 decoder)"
    )
    check(with_layers(manifest, "float8_e4m3fn", 28), THOR)


def test_one_layer_is_one_layer(manifest):
    with pytest.raises(BackendError, match=r"^1 of 2 layers is float8_e4m3fn \(model\.layers\.0"):
        check(with_layers(manifest, "float8_e4m3fn"), ORIN)


def test_layers_of_graphs_that_are_not_built_don_t_count(manifest):
    bundle = with_layers(manifest, "float8_e4m3fn", graph="vision_video")
    check(bundle, ORIN)
    with pytest.raises(BackendError):
        check(bundle, ORIN, ("vision", "vision_video", "decoder"))
    # the table is the host's: no engine computes in it
    check(with_layers(manifest, "float8_e4m3fn", graph=None), ORIN)


def test_a_bundle_that_computes_in_bfloat16_is_refused_on_turing(manifest):
    target = dataclasses.replace(manifest.target, dtype="bfloat16")
    bundle = dataclasses.replace(manifest, target=target, coverage=())
    with pytest.raises(BackendError, match=r"computes in bfloat16.*--dtype fp16"):
        check(bundle, Gpu("Tesla T4", "7.5"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_only_a_fused_attention_in_float32_is_refused(target, dtype):
    record = dataclasses.replace(make_target(target), dtype=dtype)
    if dtype == "float32" and TARGETS[target].fused:
        with pytest.raises(BackendError, match=r"ONNX Runtime's CPU; export it with --dtype bf16"):
            check_dtype(record)
    else:
        check_dtype(record)


def make_target(name):
    row = TARGETS[name]
    return TargetRecord(name, row.tensorrt, "bfloat16", row.cache, None)


# Of each version: what its parser reads
READS = {
    ("tensorrt", "10.3.0"): {"jetpack-6.2"},
    ("tensorrt", "10.7.0"): {"jetpack-6.2"},
    ("tensorrt", "10.13.3"): {"jetpack-6.2", "jetpack-7.0"},
    ("tensorrt", "10.16.1"): {"jetpack-6.2", "jetpack-7.0", "jetpack-7.2"},
    ("tensorrt", "11.4.0"): {"jetpack-6.2", "jetpack-7.0", "jetpack-7.2", "tensorrt-11"},
    ("tensorrt_rtx", "1.7.1.116"): set(TARGETS),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("builder", "version"), READS)
def test_graphs_newer_than_the_parser_are_refused_with_the_target_to_export_for(
    builder, version, target
):
    if target in READS[builder, version]:
        check_versions(make_target(target), builder, version)
        return
    suited = find_suited_target(builder, version)
    assert suited in READS[builder, version]
    with pytest.raises(
        BackendError, match=f"this is {builder} .*: export it with --target {suited}"
    ):
        check_versions(make_target(target), builder, version)


def test_a_bundle_for_jetpack_7_2_on_jetpack_6_is_told_the_command():
    with pytest.raises(BackendError) as caught:
        check_versions(make_target("jetpack-7.2"), "tensorrt", "10.3.0")
    assert str(caught.value) == (
        "the bundle's graphs are for jetpack-7.2 (TensorRT 10.16 or newer), this is tensorrt "
        "10.3.0: export it with --target jetpack-6.2, as in vlmedge export BUNDLE OUT --target "
        "jetpack-6.2"
    )


@pytest.mark.parametrize(
    ("builder", "version", "oldest"),
    [("tensorrt", "10.2.0", "10.3"), ("tensorrt", "8.6.1", "10.3"), ("tensorrt_rtx", "1.4", "1.5")],
)
def test_what_is_too_old_for_any_target_is_said_so(builder, version, oldest):
    with pytest.raises(BackendError, match=f"too old: {oldest} is the oldest"):
        check_versions(make_target("jetpack-6.2"), builder, version)


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from(["", ".0", ".1.116", ".3rc1"]))
def test_versions_are_compared_as_numbers(major, minor, rest):
    assert read_version(f"{major}.{minor}{rest}") == (major, minor)
    assert read_version(f"RTX {major}.{minor}{rest}") == (major, minor)


def test_ten_point_thirteen_is_newer_than_ten_point_three():
    assert read_version("10.13") > read_version("10.3")
    with pytest.raises(ValueError, match="'eleven' is no version"):
        read_version("eleven")


def test_every_refused_precision_has_an_alternative():
    assert INSTEAD.keys() == LEAST_CAPABILITY.keys()
