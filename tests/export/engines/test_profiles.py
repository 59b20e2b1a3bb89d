"""Profiles: every size a request may have is in one of them, and none asks for more."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.profiles import (
    BUCKET_WIDTH,
    TOKENS,
    derive_extents,
    derive_profiles,
    shape_profiles,
)
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.runtime.bundle.manifest import PixelBudget, TargetRecord, TensorSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.patches import make_image_input, make_video_input


@pytest.fixture(scope="module")
def appending(lower):
    return read_manifest(lower("jetpack-6.2"))


@pytest.fixture(scope="module")
def in_place(lower):
    return read_manifest(lower("jetpack-7.2"))


def with_budget(manifest, fewest, most):
    pixels = PixelBudget(fewest, most, manifest.pixels.image_mean, manifest.pixels.image_std)
    return dataclasses.replace(manifest, pixels=pixels)


def patch_extents(manifest, settings=None, graph="vision"):
    profiles = derive_extents(manifest, settings or BuildSettings())[graph]
    return [profile.extents["num_patches"] for profile in profiles]


@given(
    tokens=st.tuples(st.integers(1, 16384), st.integers(1, 16384)).map(sorted),
    data=st.data(),
)
def test_every_count_of_patches_up_to_the_budget_is_in_one_profile(appending, tokens, data):
    fewest, most = (count * 784 for count in tokens)
    asked = BuildSettings(max_pixels=most)
    extents = patch_extents(with_budget(appending, fewest, most), asked)
    patches = 4 * data.draw(st.integers(1, tokens[1]))
    assert sum(extent.min <= patches <= extent.max for extent in extents) == 1
    assert extents[-1].max == 4 * tokens[1]


def test_profiles_of_clips_reach_over_the_limits_of_frames(appending):
    pixels = dataclasses.replace(
        appending.pixels, clip_min_pixels=784 * 20, clip_max_pixels=784 * 40
    )
    manifest = dataclasses.replace(appending, pixels=pixels)
    extents = patch_extents(manifest, BuildSettings(video=True), "vision_video")
    assert extents[-1].max == 4 * 40
    assert extents == patch_extents(
        with_budget(appending, 784 * 20, 784 * 40), BuildSettings(video=True), "vision_video"
    )


@given(tokens=st.tuples(st.integers(1, 16384), st.integers(1, 16384)).map(sorted))
def test_profiles_follow_one_another_and_are_no_wider_than_four(appending, tokens):
    asked = BuildSettings(max_pixels=tokens[1] * 784)
    extents = patch_extents(with_budget(appending, tokens[0] * 784, tokens[1] * 784), asked)
    assert extents[0].min == 4
    for before, after in itertools.pairwise(extents):
        assert after.min == before.max + 4
        assert after.max <= BUCKET_WIDTH * after.min
    assert extents[0].max <= BUCKET_WIDTH * 4 * tokens[0]
    for extent in extents:
        assert extent.min <= extent.opt <= extent.max
        assert {extent.min % 4, extent.opt % 4, extent.max % 4} == {0}


def test_a_budget_of_a_million_pixels_gives_five_profiles(appending):
    """By hand: 4 * 1280 patches, then a quarter of each, until 16 fewest fit in a width of 4."""
    extents = patch_extents(with_budget(appending, 16 * 196, 1280 * 784))
    assert [(e.min, e.max) for e in extents] == [
        (4, 20),
        (24, 80),
        (84, 320),
        (324, 1280),
        (1284, 5120),
    ]


def test_a_cameras_pictures_are_the_last_profiles_own_size(appending):
    extents = patch_extents(with_budget(appending, 3136, 1280 * 784))
    assert extents[-1].opt == extents[-1].max
    assert all(extent.opt < extent.max for extent in extents[:-1])


def test_a_smaller_picture_is_asked_for_but_never_a_larger(appending):
    small = patch_extents(appending, BuildSettings(max_pixels=50176))
    assert small[-1].max == 256
    budget = appending.pixels
    for wrong in (budget.min_pixels - 1, budget.max_pixels + 1):
        with pytest.raises(ValueError, match=f"max_pixels is {wrong}, the bundle's budget is"):
            derive_profiles(appending, BuildSettings(max_pixels=wrong))


def test_the_checkpoints_own_budget_is_only_built_for_when_asked(appending):
    """Qwen2-VL-2B-Instruct's 16384 tokens a picture: its attention alone would be 137 GB."""
    manifest = with_budget(appending, 3136, 16384 * 784)
    assert patch_extents(manifest)[-1].max == 4 * 1280
    asked = BuildSettings(max_pixels=16384 * 784)
    assert patch_extents(manifest, asked)[-1].max == 4 * 16384
    large = with_budget(appending, 2000 * 784, 3000 * 784)
    assert patch_extents(large)[-1].max == 4 * 2000


@pytest.mark.parametrize("size", [(28, 28), (640, 480), (1280, 720), (4000, 3000), (700, 90)])
def test_a_real_picture_fits_a_profile(appending, size):
    manifest = with_budget(appending, 3136, 602112)
    picture = make_picture(size)
    visual = make_image_input(picture, manifest.pixels, manifest.vision)
    count = visual.pixel_values.shape[1]
    assert any(e.min <= count <= e.max for e in patch_extents(manifest))


@pytest.mark.parametrize("num_frames", [2, 6])
def test_a_real_clips_frames_fit_a_profile_of_the_clips_graph(appending, num_frames):
    manifest = with_budget(appending, 3136, 12845056)
    frames = [make_picture((1920, 1080))] * num_frames
    visual = make_video_input(frames, manifest.pixels, manifest.vision)
    count = visual.pixel_values.shape[1]
    extents = patch_extents(manifest, BuildSettings(video=True), "vision_video")
    assert any(e.min <= count <= e.max for e in extents)
    # frames are never as large as pictures
    assert extents[-1].max < patch_extents(manifest)[-1].max


def make_picture(size):
    return np.zeros((size[1], size[0], 3), np.uint8)


def test_clips_are_built_only_when_asked_for(appending):
    assert set(derive_profiles(appending, BuildSettings())) == {"vision", "decoder"}
    assert set(derive_profiles(appending, BuildSettings(video=True))) == {
        "vision",
        "vision_video",
        "decoder",
    }
    graphs = {name: spec for name, spec in appending.graphs.items() if name != "vision_video"}
    without = dataclasses.replace(appending, graphs=graphs)
    with pytest.raises(ValueError, match="no graph of clips"):
        derive_profiles(without, BuildSettings(video=True))


def test_an_appending_decoder_has_the_mask_of_cache_and_new_tokens(appending):
    prefill, decode = derive_profiles(
        appending, BuildSettings(context=256, prefill_tokens=32, max_batch=3)
    )["decoder"]
    assert (prefill.use, decode.use) == ("prefill", "decode")
    assert prefill.shapes["inputs_embeds"].max == (3, 32, 64)
    assert prefill.shapes["inputs_embeds"].min == (1, 1, 64)
    assert decode.shapes["inputs_embeds"].max == (3, 1, 64)
    assert prefill.shapes["past_key_values.1.value"].max == (3, 2, 256, 16)
    assert prefill.shapes["past_key_values.1.value"].min == (1, 2, 1, 16)
    assert prefill.shapes["attention_mask"].max == (3, 1, 32, 288)
    assert decode.shapes["attention_mask"].max == (3, 1, 1, 257)
    assert decode.shapes["logit_index"].opt == (3,)


@given(context=st.integers(1, 512), chunk=st.integers(1, 512), batch=st.integers(1, 8))
def test_the_mask_is_cache_plus_new_tokens_at_each_of_the_three_shapes(
    appending, context, chunk, batch
):
    settings = BuildSettings(context=context, prefill_tokens=chunk, max_batch=batch)
    for profile in derive_extents(appending, settings)["decoder"]:
        e = profile.extents
        for side in ("min", "opt", "max"):
            capacity, new = getattr(e["capacity"], side), getattr(e["sequence"], side)
            assert getattr(e["total"], side) == capacity + new
            assert getattr(e[TOKENS], side) == getattr(e["batch"], side) * new
        assert e["capacity"].max == context
        assert e["sequence"].max <= min(chunk, context)


def test_a_fixed_capacity_is_no_dimension_of_a_profile(in_place):
    prefill, _ = derive_profiles(in_place, BuildSettings(prefill_tokens=16))["decoder"]
    assert prefill.shapes["attention_mask"].max == (1, 1, 16, 128)
    assert prefill.shapes["past_key_values.0.key"].min == (1, 2, 128, 16)
    with pytest.raises(ValueError, match=r"the bundle's graph fixes 128: export it with --context"):
        derive_profiles(in_place, BuildSettings(context=64))
    assert derive_profiles(in_place, BuildSettings(context=128))


def test_a_context_beyond_the_models_positions_is_refused(appending):
    longest = appending.decoder.max_position_embeddings
    assert derive_profiles(appending, BuildSettings(context=longest))
    with pytest.raises(ValueError, match=f"positions end at {longest}"):
        derive_profiles(appending, BuildSettings(context=longest + 1))


def test_a_bundle_for_onnxruntime_is_told_how_to_be_exported(make_bundle):
    manifest = read_manifest(make_bundle("tiny").bundle)
    with pytest.raises(ValueError, match=r"flavor onnxruntime.*export it with --target first"):
        derive_profiles(manifest, BuildSettings())


def test_an_input_of_unknown_dimensions_is_refused(appending):
    extents = derive_extents(appending, BuildSettings())["decoder"]
    with pytest.raises(ValueError, match="input x has a dimension 'width'"):
        shape_profiles([TensorSpec("x", "float32", ("batch", "width"))], extents)


def test_inputs_of_fixed_shape_are_in_no_profile(appending):
    extents = derive_extents(appending, BuildSettings())["decoder"]
    inputs = [TensorSpec("a", "float32", (3, 4)), TensorSpec("b", "float32", (3, "batch"))]
    assert [set(profile.shapes) for profile in shape_profiles(inputs, extents)] == [{"b"}, {"b"}]


def test_target_record_decides_not_the_name(appending):
    target = TargetRecord("jetpack-6.2", "10.3", "bfloat16", "in_place", 128)
    manifest = dataclasses.replace(appending, target=target)
    _, decode = derive_extents(manifest, BuildSettings())["decoder"]
    assert decode.extents["capacity"].max == 128
