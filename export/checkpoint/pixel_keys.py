"""What becomes of each key of an image and a video processor; see `key_rules`."""

from __future__ import annotations

from collections.abc import Iterator

from .key_rules import KeyRule, Treatment

SECTION = "preprocessor_config.json, or processor_config.json: image_processor"
VIDEO_SECTION = "video_preprocessor_config.json, or processor_config.json: video_processor"

_NAMES = "names a class or file; the model's own is used"
_OUTPUT = "about the form of what transformers returns"
_CLIP = "clips get frames and budget from the caller and the runtime, see preprocessing.md"

# key -> treatment, reason, neutral values
_IMAGE: dict[str, tuple[Treatment, str, tuple]] = {
    "min_pixels": ("honoured", "before size.shortest_edge", ()),
    "max_pixels": ("honoured", "before size.longest_edge", ()),
    "size": ("honoured", "shortest_edge and longest_edge are the limits in pixels", ()),
    "resample": ("honoured", "any of Pillow's filters", ()),
    "do_rescale": ("honoured", "folded into the statistics", ()),
    "rescale_factor": ("honoured", "folded into the statistics", ()),
    "do_normalize": ("honoured", "without it mean 0, standard deviation 1", ()),
    "image_mean": ("honoured", "three numbers, or one for all", ()),
    "image_std": ("honoured", "three numbers over 0, or one for all", ()),
    "patch_size": ("honoured", "must be the model's", ()),
    "temporal_patch_size": ("honoured", "must be the model's", ()),
    "merge_size": ("honoured", "must be the model's", ()),
    "do_resize": ("refused", "pictures must be resized to whole visual tokens", (True,)),
    "do_center_crop": ("no effect", "Qwen2-VL's processor crops nothing", ()),
    "crop_size": ("no effect", "Qwen2-VL's processor crops nothing", ()),
    "do_pad": ("no effect", "Qwen2-VL's processor pads nothing", ()),
    "pad_size": ("no effect", "Qwen2-VL's processor pads nothing", ()),
    "default_to_square": ("no effect", "size is an area, not a side", ()),
    "do_convert_rgb": ("no effect", "pictures are RGB already when they are resized", ()),
    "data_format": ("no effect", _OUTPUT, ()),
    "input_data_format": ("no effect", "pictures come with their own order of channels", ()),
    "return_tensors": ("no effect", _OUTPUT, ()),
    "device": ("no effect", "where transformers computes", ()),
    "disable_grouping": ("no effect", "how transformers batches", ()),
    "image_seq_length": ("no effect", "Qwen2-VL counts its tokens by the grid", ()),
    "image_processor_type": ("no effect", _NAMES, ()),
    "feature_extractor_type": ("no effect", _NAMES, ()),
    "processor_class": ("no effect", _NAMES, ()),
    "auto_map": ("no effect", _NAMES, ()),
    "_valid_processor_keys": ("no effect", "a list that older versions saved", ()),
}
_VIDEO: dict[str, tuple[Treatment, str, tuple]] = {
    **{
        key: rule
        for key, rule in _IMAGE.items()
        if key not in ("min_pixels", "max_pixels", "size", "image_seq_length")
    },
    **{
        key: ("honoured", "must be the pictures'", ())
        for key in (
            *("resample", "do_rescale", "rescale_factor", "do_normalize"),
            *("image_mean", "image_std"),
        )
    },
    **{
        key: ("no effect", _CLIP, ())
        for key in (
            *("min_pixels", "max_pixels", "size", "do_sample_frames", "fps", "num_frames"),
            *("min_frames", "max_frames", "return_metadata", "video_metadata", "video_backend"),
        )
    },
    "video_processor_type": ("no effect", _NAMES, ()),
}


def _list_rules() -> Iterator[KeyRule]:
    for section, keys in ((SECTION, _IMAGE), (VIDEO_SECTION, _VIDEO)):
        for key, (treatment, reason, neutral) in keys.items():
            yield KeyRule(section, key, treatment, reason, neutral)


RULES = tuple(_list_rules())
