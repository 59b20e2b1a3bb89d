"""Settings of pictures against transformers' own processor of the same folder.

Pixels agree to 1e-5: our statistics are those of levels from 0 to 1, so that a rescaling by another
factor is one more rounding in single precision; with plain settings they are equal.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.keys.pixels import (
    PROCESSOR_SECTION,
    RULES,
    SECTION,
    VIDEO_SECTION,
)
from vlmedge.export.checkpoint.pixels import find_pixel_budget
from vlmedge.export.exporter import export_checkpoint
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.images import open_image
from vlmedge.runtime.inputs.patches import make_image_input, make_video_input, normalize_patches
from vlmedge.runtime.model import Model

SAMPLES = Path(__file__).parents[4] / "samples"
PICTURE = SAMPLES / "pictures" / "receipt-0.png"
QUESTION = "What is the total?"
LIMITS = {"shortest_edge": 3136, "longest_edge": 100352}


@pytest.fixture
def reader(tmp_path):
    """A copy of the sample's checkpoint."""
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


@pytest.fixture
def edit(reader):
    """Change preprocessor_config.json, or move it to where transformers 5 saves it."""

    def apply(changes, *, moved=False):
        path = reader / "preprocessor_config.json"
        config = json.loads(path.read_text()) | changes
        path.unlink()
        if moved:
            path = reader / "processor_config.json"
            config = {"processor_class": "Qwen2VLProcessor", "image_processor": config}
        path.write_text(json.dumps(config))
        return reader

    return apply


def draw_picture(size=(117, 88)):
    levels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(levels).resize((size[0] * 2, size[1] * 2), Image.Resampling.BICUBIC)


def cut_both(checkpoint, picture):
    """Our normalized patches and grid, and transformers'."""
    spec = read_model_spec(checkpoint)
    budget = find_pixel_budget(checkpoint, spec).value
    ours = make_image_input(open_image(picture), budget, spec.vision)
    levels = normalize_patches(ours.pixel_values, budget.image_mean, budget.image_std)
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    theirs = processor(images=[picture], return_tensors="np")
    got = levels.reshape(-1, levels.shape[-1])
    return (got, tuple(ours.grid)), (theirs["pixel_values"], tuple(theirs["image_grid_thw"][0]))


HONOURED = {
    "as it is": {},
    "min_pixels": {"min_pixels": 200_704, "max_pixels": 401_408},
    "max_pixels": {"max_pixels": 20_000},
    "size": {"min_pixels": None, "max_pixels": None, "size": LIMITS | {"longest_edge": 15_680}},
    "min_pixels over size": {"size": LIMITS | {"longest_edge": 15_680}},
    "class's own": {"min_pixels": None, "max_pixels": None},
    **{f"resample {number}": {"resample": number} for number in range(6)},
    "do_rescale": {"do_rescale": False},
    "rescale_factor": {"rescale_factor": 1 / 127.5},
    "rescale_factor without normalizing": {"rescale_factor": 0.01, "do_normalize": False},
    "do_normalize": {"do_normalize": False},
    "image_mean": {"image_mean": [0.1, 0.2, 0.3]},
    "image_mean of one number": {"image_mean": 0.5},
    "image_std": {"image_std": [0.1, 0.2, 0.3]},
    "image_std of one number": {"image_std": 0.25},
    "null is off": dict.fromkeys(("do_rescale", "do_normalize", "rescale_factor", "image_mean")),
    "patch sizes": {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
}


@pytest.mark.parametrize("moved", [False, True], ids=["own file", "processor_config.json"])
@pytest.mark.parametrize("changes", HONOURED.values(), ids=HONOURED)
def test_pixels_are_those_of_transformers_whatever_the_settings(edit, changes, moved):
    (got, grid), (needed, needed_grid) = cut_both(edit(changes, moved=moved), draw_picture())
    assert grid == needed_grid
    scale = max(1.0, float(np.abs(needed).max()))  # levels up to 950 where nothing is rescaled
    np.testing.assert_allclose(got, needed, rtol=0, atol=1e-5 * scale)


def test_every_honoured_key_changes_pixels_in_a_case_above():
    honoured = {rule.key for rule in RULES if rule.section == SECTION} - {
        rule.key for rule in RULES if rule.treatment != "honoured"
    }
    assert honoured <= {key for changes in HONOURED.values() for key in changes}


WITHOUT_EFFECT = {
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "do_pad": True,
    "pad_size": {"height": 280, "width": 280},
    "default_to_square": True,
    "do_convert_rgb": False,
    "data_format": "channels_last",
    "disable_grouping": True,
    "image_seq_length": 7,
    "auto_map": {"AutoImageProcessor": "x.Y"},
    "_valid_processor_keys": ["images"],
}


def test_keys_without_effect_change_nothing_in_transformers_either(edit):
    picture = draw_picture()
    _, (before, _) = cut_both(edit({}), picture)
    _, (after, _) = cut_both(edit(WITHOUT_EFFECT), picture)
    np.testing.assert_array_equal(after, before)
    rules = {r.key for r in RULES if r.section == SECTION and r.treatment == "no effect"}
    named = {"feature_extractor_type", "processor_class"}
    calls = {"return_tensors", "input_data_format", "device"}  # of a call; saved by nobody
    assert rules == set(WITHOUT_EFFECT) | named | calls


def test_every_key_that_transformers_knows_has_a_rule():
    rules = {rule.key for rule in RULES if rule.section == SECTION}
    assert set(Qwen2VLImageProcessorPil.valid_kwargs.__annotations__) <= rules
    video = {rule.key for rule in RULES if rule.section == VIDEO_SECTION}
    from transformers.processing_utils import VideosKwargs

    own = {"min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"}
    own |= {"min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens"}
    assert {*VideosKwargs.__annotations__, *own} <= video
    processor = {rule.key for rule in RULES if rule.section == PROCESSOR_SECTION}
    assert {*Qwen2VLProcessor.get_attributes(), "chat_template", "processor_class"} <= processor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize is False, which is refused: pictures must be resized"),
        ({"do_resize": None}, "do_resize is null, which transformers takes as false"),
        ({"rescale_factor": None}, "rescale_factor is None"),
        ({"image_std": None}, "image_std is None"),
        ({"resample": None}, "resample is None"),
        ({"patch_size": None}, "patch_size is None"),
        ({"resample": "bilinear"}, "resample is 'bilinear', a Pillow filter is needed"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std is"),
        ({"patch_size": 16}, "patch_size is 16"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPImage"),
        ({"size": [1, 2], "min_pixels": None}, "size is"),
    ],
)
@pytest.mark.parametrize("moved", [False, True], ids=["own file", "processor_config.json"])
def test_what_can_not_be_followed_is_refused_by_name(edit, changes, message, moved):
    checkpoint = edit(changes, moved=moved)
    with pytest.raises(ValueError, match=message):
        find_pixel_budget(checkpoint, read_model_spec(checkpoint))


def test_settings_under_the_new_name_count_before_the_old_file(edit):
    checkpoint = edit({"max_pixels": 20_000}, moved=True)
    shutil.copy(SAMPLES / "reader" / "preprocessor_config.json", checkpoint)
    found = find_pixel_budget(checkpoint, read_model_spec(checkpoint))
    assert found.value.max_pixels == 20_000
    places = {origin.setting: origin.place for origin in found.origins}
    assert places["pixels.max_pixels"] == "processor_config.json: image_processor.max_pixels"
    assert places["pixels.resample"] == "default of transformers"
    assert any("preprocessor_config.json is not read" in remark for remark in found.unusual)
    assert Qwen2VLImageProcessorPil.from_pretrained(checkpoint).size["longest_edge"] == 20_000


@pytest.mark.parametrize("key", ["image_mean", "image_std", "resample", "rescale_factor"])
def test_clips_that_would_be_seen_otherwise_than_pictures_are_refused(reader, key):
    other = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 1.0}
    path = reader / "video_preprocessor_config.json"
    same = json.loads((reader / "preprocessor_config.json").read_text())
    path.write_text(json.dumps(same | {"max_pixels": 50_176, "fps": 3.0}))
    find_pixel_budget(reader, read_model_spec(reader))
    path.write_text(json.dumps(same | {key: other[key]}))
    with pytest.raises(ValueError, match=r"video_preprocessor_config\.json.* makes clips"):
        find_pixel_budget(reader, read_model_spec(reader))


CLIP_LIMITS = {
    "another most": ({"max_pixels": 20_000}, (3136, 20_000)),
    "by size": (
        {"min_pixels": None, "max_pixels": None, "size": LIMITS | {"shortest_edge": 6272}},
        (6272, 100_352),
    ),
    "class's own": (dict.fromkeys(("min_pixels", "max_pixels")), (100_352, 602_112)),
}


@pytest.mark.parametrize("moved", [False, True], ids=["own file", "processor_config.json"])
@pytest.mark.parametrize(("changes", "limits"), CLIP_LIMITS.values(), ids=CLIP_LIMITS)
def test_frames_of_clips_have_limits_of_their_own(reader, changes, limits, moved):
    """By the class's rule: transformers' video processor itself needs torchvision."""
    same = json.loads((reader / "preprocessor_config.json").read_text())
    clips = same | changes | {"video_processor_type": "Qwen2VLVideoProcessor"}
    path = reader / ("processor_config.json" if moved else "video_preprocessor_config.json")
    path.write_text(json.dumps({"video_processor": clips} if moved else clips))
    found = find_pixel_budget(reader, read_model_spec(reader))
    assert found.value.frame_limits == limits
    assert (found.value.min_pixels, found.value.max_pixels) == (3136, 100_352)
    assert found.unusual == ()
    spec = read_model_spec(reader)
    small, large = (np.zeros((side, side, 3), np.uint8) for side in (30, 700))
    areas = []
    for picture in (small, large):
        clip = make_video_input([picture] * 2, found.value, spec.vision)
        areas.append(clip.grid.h * clip.grid.w * 14 * 14)
    assert limits[0] <= areas[0]
    assert areas[1] <= min(limits[1], 100_352)  # a clip has the pixels of one picture


def test_clips_with_the_limits_of_pictures_say_nothing_of_their_own(reader):
    path = reader / "video_preprocessor_config.json"
    shutil.copy(reader / "preprocessor_config.json", path)
    budget = find_pixel_budget(reader, read_model_spec(reader)).value
    assert (budget.clip_min_pixels, budget.clip_max_pixels) == (None, None)
    path.unlink()
    assert find_pixel_budget(reader, read_model_spec(reader)).value == budget


def test_a_null_section_counts_as_none(reader):
    path = reader / "processor_config.json"
    path.write_text(json.dumps({"image_processor": None, "video_processor": None}))
    budget = find_pixel_budget(reader, read_model_spec(reader)).value
    processor = Qwen2VLImageProcessorPil.from_pretrained(reader)
    assert budget.max_pixels == processor.size["longest_edge"] == 100_352


def test_frames_whose_filter_is_none_are_refused_in_one_line(reader):
    same = json.loads((reader / "preprocessor_config.json").read_text())
    path = reader / "video_preprocessor_config.json"
    path.write_text(json.dumps(same | {"resample": [3]}))
    with pytest.raises(ValueError, match=r"resample is \[3\], a Pillow filter is needed"):
        find_pixel_budget(reader, read_model_spec(reader))


def ask(checkpoint, bundle, picture):
    export_checkpoint(checkpoint, bundle)
    with Model.load(bundle, num_threads=1) as model:
        return model.answer(QUESTION, [picture]).text


def test_a_large_picture_is_read_rightly_with_settings_where_transformers_5_saves_them(
    edit, tmp_path
):
    """With the class's own limits, 1003520 pixels, the sample reads nothing."""
    sizes = {"min_pixels": None, "max_pixels": None, "size": LIMITS}
    picture = Image.open(PICTURE).convert("RGB").resize((900, 770), Image.Resampling.BICUBIC)
    checkpoint = edit(sizes, moved=True)
    assert ask(checkpoint, tmp_path / "bundle", picture) == "26.29"
    (_, grid), (_, needed) = cut_both(checkpoint, picture)
    assert grid == needed
    assert np.prod(grid) // 4 == 120


@pytest.mark.parametrize("changes", [{"rescale_factor": 1 / 127.5}, {"do_normalize": False}])
def test_a_bundle_has_the_settings_of_its_pictures(edit, tmp_path, changes):
    checkpoint = edit(changes | {"resample": 2})
    export_checkpoint(checkpoint, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.pixels == find_pixel_budget(checkpoint, read_model_spec(checkpoint)).value
    assert manifest.pixels.resample == "bilinear"
