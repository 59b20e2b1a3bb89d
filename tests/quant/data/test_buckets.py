import dataclasses
import io
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmedge.quant.data.buckets import (
    coverage_of,
    measure_part,
    name_bucket,
    resize_bucket,
    summarize,
)
from vlmedge.quant.data.examples import Example
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.images import open_image
from vlmedge.runtime.inputs.patches import make_image_input, make_video_input


@pytest.fixture(scope="module")
def manifest(make_bundle):
    return read_manifest(make_bundle("tiny").bundle)


def with_budget(manifest, min_tokens, max_tokens):
    pixels = dataclasses.replace(
        manifest.pixels, min_pixels=min_tokens * 784, max_pixels=max_tokens * 784
    )
    return dataclasses.replace(manifest, pixels=pixels)


def encode(width, height, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG", exif=exif)
    return file.getvalue()


def image_part(*size, **limits):
    return {"type": "image", "image": encode(*size), **limits}


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(10, 500), st.integers(10, 500)),
    orientation=st.integers(1, 8),
    num_frames=st.integers(0, 7),
    max_pixels=st.none() | st.integers(3136, 60000),
)
def test_a_bucket_is_the_size_the_patches_are_cut_at(
    manifest, size, orientation, num_frames, max_pixels
):
    manifest = with_budget(manifest, 4, 200)
    data = encode(*size, orientation)
    picture = open_image(data)
    limits = {} if max_pixels is None else {"max_pixels": max_pixels}
    if num_frames:
        part = {"type": "video", "video": [data] * num_frames, **limits}
        frames = [picture] * num_frames
        visual = make_video_input(frames, manifest.pixels, manifest.vision, max_pixels=max_pixels)
    else:
        part = {"type": "image", "image": data, **limits}
        visual = make_image_input(picture, manifest.pixels, manifest.vision, max_pixels=max_pixels)
    seen = measure_part(part, manifest)
    assert (seen.height, seen.width) == (visual.grid.h * 14, visual.grid.w * 14)
    assert resize_bucket(part, manifest) == name_bucket(visual, manifest.vision)


def test_buckets_are_named_as_findings_name_them(manifest):
    manifest = with_budget(manifest, 4, 1000)
    assert resize_bucket(image_part(450, 330), manifest) == "448x336"
    clip = {"type": "video", "video": [encode(84, 84)] * 3}
    assert resize_bucket(clip, manifest) == "clip 84x84x2"


def test_five_buckets_of_equal_ratio_cover_the_budget_without_a_gap(manifest):
    counts = coverage_of([], with_budget(manifest, 4, 16384))
    assert len(counts) == 5
    assert (counts[0].min_tokens, counts[-1].max_tokens) == (4, 16384)
    for one, two in pairwise(counts):
        assert two.min_tokens == one.max_tokens + 1
    ratios = [(c.max_tokens + 1) / c.min_tokens for c in counts]
    assert max(ratios) / min(ratios) < 1.1


@pytest.mark.parametrize(("low", "high"), [(4, 4), (4, 5), (1, 3)])
def test_a_narrow_budget_has_fewer_buckets_but_all_its_sizes(manifest, low, high):
    counts = coverage_of([], with_budget(manifest, low, high))
    covered = [n for c in counts for n in range(c.min_tokens, c.max_tokens + 1)]
    assert covered == list(range(low, high + 1))


def test_every_picture_and_clip_is_counted_in_its_bucket(manifest):
    manifest = with_budget(manifest, 4, 1024)
    rng = Random(0)
    sizes = [(rng.randint(30, 900), rng.randint(30, 900)) for _ in range(30)]
    content = [image_part(*size) for size in sizes]
    content.append({"type": "video", "video": [encode(112, 112)] * 4})
    content.append({"type": "text", "text": "?"})
    examples = [Example("1", ({"role": "user", "content": content},)), Example("2", ())]
    counts = coverage_of(examples, manifest)
    assert sum(c.num_pictures for c in counts) == 31
    tokens = [np.prod(measure_part(p, manifest)[:2]) // 784 for p in content[:-1]]
    for c in counts:
        assert c.num_pictures == sum(c.min_tokens <= n <= c.max_tokens for n in tokens)


def test_a_long_picture_over_the_budget_counts_as_the_largest(manifest):
    manifest = with_budget(manifest, 4, 16)
    part = image_part(2800, 28)  # keeps a side of one token: 28 x 28 * 100 / ...
    assert measure_part(part, manifest).width * 28 // 784 > 16
    counts = coverage_of([Example("1", ({"role": "user", "content": [part]},))], manifest)
    assert counts[-1].num_pictures == 1


def test_the_summary_warns_of_an_empty_bucket(manifest):
    manifest = with_budget(manifest, 4, 1024)
    example = Example("1", ({"role": "user", "content": [image_part(56, 56)]},))
    lines = summarize(coverage_of([example], manifest))
    assert lines[0].endswith("pictures: 1")
    assert all("none: add pictures" in line for line in lines[1:])
