"""Options of trtexec: the table, and what profiles become."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.script.options import (
    OPTIONS,
    VERSIONS,
    list_options,
    make_options,
    to_number,
)
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.backends.trt.engine_set import Profile, ShapeRange

# Written down from `trtexec --help` of each version's source, not from the table under test.
IN_ALL = {"--onnx", "--saveEngine", "--skipInference", "--stronglyTyped", "--profile"}
IN_ALL |= {"--minShapes", "--optShapes", "--maxShapes", "--memPoolSize", "--timingCacheFile"}
IN_ALL |= {"--builderOptimizationLevel", "--allowWeightStreaming", "--noTF32"}
ONLY_10 = {"--fp16", "--bf16", "--fp8", "--int4", "--best", "--precisionConstraints"}


def make_profile(**shapes):
    return Profile("decode", {name: ShapeRange(*sides) for name, sides in shapes.items()})


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_what_scripts_use(version):
    assert list_options(version) >= IN_ALL


def test_precision_flags_are_gone_from_11():
    assert list_options("10.16") >= ONLY_10
    assert not list_options("11.0") & ONLY_10
    assert not list_options("11.1") & ONLY_10


def test_versions_between_count_as_the_older_and_newer_ones_as_the_newest():
    assert list_options("10.7.0") == list_options("10.3")
    assert list_options("10.13.3.9") == list_options("10.13")
    assert list_options("11.4.1") == list_options("11.1")
    assert "--maxTactics" in list_options("10.13") - list_options("10.3")


@pytest.mark.parametrize("version", ["10.2", "8.6.1"])
def test_an_older_trtexec_than_those_read_is_refused(version):
    with pytest.raises(ValueError, match=r"needed 10\.3 or newer"):
        list_options(version)


@pytest.mark.parametrize("text", ["", "10", "ten.three", "10.x", "v10.3"])
def test_what_is_no_version_is_refused(text):
    with pytest.raises(ValueError, match="needed numbers"):
        to_number(text)


def test_the_table_is_in_itself_right():
    for name, option in OPTIONS.items():
        assert re.fullmatch(r"--[a-zA-Z0-9]+", name)
        assert option.name == name
        assert option.first in VERSIONS
        assert option.gone is None or to_number(option.gone) > to_number(option.first)


def test_layers_of_one_range_share_a_pattern():
    cache = ((1, 2, 1, 8), (1, 2, 64, 8), (1, 2, 128, 8))
    profile = make_profile(
        **{
            "inputs_embeds": ((1, 1, 16), (1, 4, 16), (1, 8, 16)),
            "past_key_values.0.key": cache,
            "past_key_values.0.value": cache,
            "past_key_values.11.key": cache,
            "past_key_values.11.value": cache,
        }
    )
    options = make_options([profile], BuildSettings(), "10.3")
    assert options == (
        "--skipInference",
        "--stronglyTyped",
        "--noTF32",
        "--profile=0",
        "--minShapes=inputs_embeds:1x1x16,past_key_values.*.key:1x2x1x8,past_key_values.*.value:1x2x1x8",
        "--optShapes=inputs_embeds:1x4x16,past_key_values.*.key:1x2x64x8,past_key_values.*.value:1x2x64x8",
        "--maxShapes=inputs_embeds:1x8x16,past_key_values.*.key:1x2x128x8,past_key_values.*.value:1x2x128x8",
    )


def test_layers_of_different_ranges_keep_their_names():
    profile = make_profile(**{"past.0.key": ((1,), (1,), (1,)), "past.1.key": ((2,), (2,), (2,))})
    options = make_options([profile], BuildSettings(), "10.3")
    assert "--minShapes=past.0.key:1,past.1.key:2" in options


def test_a_profiles_shapes_follow_it_at_once():
    """trtexec looks for them right behind --profile=N, and takes what is elsewhere for an error."""
    profile = make_profile(x=((1,), (1,), (1,)))
    options = make_options([profile] * 3, BuildSettings(workspace_mib=64), "10.3")
    for index in range(3):
        at = options.index(f"--profile={index}")
        names = [option.partition("=")[0] for option in options[at + 1 : at + 4]]
        assert names == ["--minShapes", "--optShapes", "--maxShapes"]


def test_from_11_on_nothing_says_strongly_typed():
    profile = make_profile(x=((1,), (1,), (1,)))
    assert "--stronglyTyped" in make_options([profile], BuildSettings(), "10.16")
    assert "--stronglyTyped" not in make_options([profile], BuildSettings(), "11.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_float32_is_never_rounded_to_tf32(version):
    """The builder of `vlmedge build` clears the flag: a script must not build another engine."""
    profile = make_profile(x=((1,), (1,), (1,)))
    assert "--noTF32" in make_options([profile], BuildSettings(), version)


def test_settings_become_options():
    settings = BuildSettings(workspace_mib=512, optimization_level=1, weight_streaming=True)
    options = make_options([make_profile(x=((1,), (1,), (1,)))], settings, "10.3")
    assert options[-3:] == (
        "--memPoolSize=workspace:512M",
        "--builderOptimizationLevel=1",
        "--allowWeightStreaming",
    )


@pytest.mark.parametrize("name", ["a,b", "a*", "a'b", "a\nb"])
def test_a_name_that_trtexec_would_misread_is_refused(name):
    with pytest.raises(ValueError, match="reads as its own"):
        make_options([make_profile(**{name: ((1,), (1,), (1,))})], BuildSettings(), "10.3")


def match_as_trtexec(pattern: str, name: str) -> bool:
    """matchStringWithOneWildcard of samples/common/sampleUtils.cpp, from its description."""
    if "*" not in pattern:
        return pattern == name
    before, _, after = pattern.partition("*")
    return (
        len(name) >= len(before) + len(after) and name.startswith(before) and name.endswith(after)
    )


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 12), st.sampled_from(["key", "value"])),
        st.sampled_from([(1, 2), (2, 2), (3, 2)]),
        min_size=1,
    )
)
def test_trtexec_finds_every_input_its_own_shape(by_layer):
    shapes = {f"past.{layer}.{kind}": (side,) * 3 for (layer, kind), side in by_layer.items()}
    (line,) = [
        option.partition("=")[2]
        for option in make_options([make_profile(**shapes)], BuildSettings(), "10.3")
        if option.startswith("--maxShapes=")
    ]
    given_shapes = dict(item.rsplit(":", 1) for item in line.split(","))
    for name, (side, _, _) in shapes.items():
        wanted = "x".join(map(str, side))
        exact = given_shapes.get(name)
        found = {s for p, s in given_shapes.items() if match_as_trtexec(p, name)}
        assert exact == wanted or (exact is None and found == {wanted})
