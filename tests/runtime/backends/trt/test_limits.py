import dataclasses

import pytest

from vlmedge.runtime.backends.trt.limits import find_sides, limit_manifest, read_limits
from vlmedge.runtime.backends.trt.profiles import find_profile
from vlmedge.runtime.errors import BundleError


def test_limits_are_the_largest_of_all_profiles(engine_set, manifest):
    limits = read_limits(engine_set, manifest)
    assert limits.patches == {"vision": (4, 256)}
    assert limits.images == {"vision": 2}
    assert (limits.batch, limits.capacity, limits.prefill) == (2, 256, 64)


def test_a_manifest_is_limited_to_what_the_engines_take(engine_set, manifest):
    limits = read_limits(engine_set, manifest)
    limited = limit_manifest(manifest, limits)
    assert (limited.pixels.min_pixels, limited.pixels.max_pixels) == (3136, 256 * 196)
    assert limited.context_length == 256
    assert limited.graphs == manifest.graphs
    wide = dataclasses.replace(limits, patches={"vision": (4, 10**6)}, capacity=10**6)
    assert limit_manifest(manifest, wide) == manifest


def test_limits_of_clips_are_kept_within_the_engine_of_clips(engine_set, manifest):
    limits = read_limits(engine_set, manifest)
    pixels = dataclasses.replace(manifest.pixels, clip_min_pixels=6272, clip_max_pixels=10**6)
    clips = dataclasses.replace(manifest, pixels=pixels)
    both = dataclasses.replace(limits, patches={**limits.patches, "vision_video": (4, 128)})
    assert limit_manifest(clips, both).pixels.frame_limits == (6272, 128 * 196)
    assert limit_manifest(clips, limits).pixels.frame_limits == (6272, 10**6)


def test_a_side_that_the_graph_fixes_is_its_own_limit(engine_set):
    (record,) = engine_set.chains["decoder"]
    fixed = tuple(
        dataclasses.replace(spec, shape=("batch", 2, 1024, 16)) if "past" in spec.name else spec
        for spec in record.inputs
    )
    fixed_record = dataclasses.replace(record, inputs=fixed)
    assert find_sides([fixed_record], "prefill", "past_key_values.0.key", 2) == (1024, 1024)


def test_an_input_of_a_later_engine_is_found(engine_set):
    records = [*engine_set.chains["vision"], *engine_set.chains["decoder"]]
    assert find_sides(records, "decode", "inputs_embeds", 1) == (1, 1)
    assert find_sides(records, "decode", "nothing", 1) is None
    assert find_sides(records[:1], "prefill", "pixel_values", 1) is None


def test_a_set_without_a_profile_for_prompts_is_a_bundle_error(engine_set, manifest):
    (record,) = engine_set.chains["decoder"]
    decode = dataclasses.replace(record, profiles=record.profiles[1:])
    chains = engine_set.chains | {"decoder": (decode,)}
    with pytest.raises(BundleError, match=r"no prefill profile.*vlmedge build bundle"):
        read_limits(dataclasses.replace(engine_set, chains=chains), manifest)


@pytest.mark.parametrize(
    ("num_images", "num_patches", "needed"),
    [(1, 4, 0), (2, 64, 0), (1, 68, 1), (1, 256, 1), (1, 65, None), (1, 257, None), (3, 4, None)],
)
def test_the_first_profile_that_holds_all_sides_is_taken(
    engine_set, num_images, num_patches, needed
):
    (record,) = engine_set.chains["vision"]
    shapes = {
        "pixel_values": (num_images, num_patches, 588),
        "position_ids": (num_images, num_patches, 2),
    }
    assert find_profile(record, "vision", shapes) == needed
    assert find_profile(record, "decode", shapes) is None


def test_sides_without_a_profile_must_be_those_of_the_graph(engine_set):
    (record,) = engine_set.chains["vision"]
    profile = dataclasses.replace(record.profiles[0], shapes={})
    record = dataclasses.replace(record, profiles=(profile,))
    shapes = {"pixel_values": (9, 999, 588), "position_ids": (9, 999, 2)}
    assert find_profile(record, "vision", shapes) == 0
    assert find_profile(record, "vision", shapes | {"position_ids": (9, 999, 3)}) is None
    assert find_profile(record, "vision", shapes | {"position_ids": (999, 2)}) is None
