"""The rule of each key of an image and a video processor; see `rules.py`."""

from __future__ import annotations

from collections.abc import Iterator

from .rules import KeyRule, Treatment

SECTION = "preprocessor_config.json, or processor_config.json: image_processor"
PROCESSOR_SECTION = "processor_config.json"
VIDEO_SECTION = "video_preprocessor_config.json, or processor_config.json: video_processor"

_CLASSES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_NAMES = "names a class or file; the model's own is used"
_OUTPUT = "about the form of what transformers returns"
_CLIP = "clips get their frames from the caller, chosen already"
_SHARE = "a clip's frames share the pixels of one picture, which bounds them further"

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
    "image_processor_type": ("refused", "another class cuts pictures in its own way", _CLASSES),
    "feature_extractor_type": ("no effect", _NAMES, ()),
    "processor_class": ("no effect", _NAMES, ()),
    "auto_map": ("no effect", _NAMES, ()),
    "_valid_processor_keys": ("no effect", "a list that older versions saved", ()),
}
_VIDEO: dict[str, tuple[Treatment, str, tuple]] = {
    **{key: rule for key, rule in _IMAGE.items() if key != "image_seq_length"},
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
            *("do_sample_frames", "fps", "num_frames", "min_frames", "max_frames"),
            *("return_metadata", "video_metadata", "video_backend"),
        )
    },
    "min_pixels": ("honoured", "of a frame, before size.shortest_edge", ()),
    "max_pixels": ("honoured", f"of a frame, before size.longest_edge; {_SHARE}", ()),
    "size": ("honoured", f"shortest_edge and longest_edge are a frame's limits; {_SHARE}", ()),
    "cap_pixels_per_frame": ("no effect", _SHARE, ()),
    "max_video_tokens": ("refused", "the runtime's own share bounds clips", (128000,)),
    "video_processor_type": (
        "refused",
        "another class cuts clips in its own way",
        ("Qwen2VLVideoProcessor",),
    ),
}


_PROCESSOR: dict[str, tuple[Treatment, str, tuple]] = {
    "image_processor": ("honoured", "settings of pictures, see there", ()),
    "video_processor": ("honoured", "settings of clips, see there", ()),
    "chat_template": ("honoured", "before every other template", ()),
    "processor_class": ("no effect", _NAMES, ()),
    "auto_map": ("no effect", _NAMES, ()),
    "tokenizer": ("no effect", "the tokenizer's own files count", ()),
    "audio_tokenizer": ("refused", "Qwen2-VL hears nothing", ()),
    "feature_extractor": ("no effect", "Qwen2-VL hears nothing", ()),
}


def _list_rules() -> Iterator[KeyRule]:
    sections = ((SECTION, _IMAGE), (VIDEO_SECTION, _VIDEO), (PROCESSOR_SECTION, _PROCESSOR))
    for section, keys in sections:
        for key, (treatment, reason, neutral) in keys.items():
            yield KeyRule(section, key, treatment, reason, neutral)


RULES = tuple(_list_rules())
