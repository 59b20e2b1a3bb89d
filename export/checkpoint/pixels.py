"""Read a checkpoint's image processor settings as the bundle's pixel budget.

transformers 5 keeps them in processor_config.json under "image_processor", older ones in
preprocessor_config.json; where both are there the first counts. What becomes of each key is in
`pixel_keys`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import PixelBudget, Resample
from .config import ModelSpec
from .files.json_file import read_json
from .files.origin import Found, Origin
from .keys.pixels import PROCESSOR_SECTION, RULES, SECTION, VIDEO_SECTION
from .keys.rules import check_keys

# Of the processor's class, for what no file says: Qwen2-VL's own limits and CLIP's statistics
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 1280 * 28 * 28
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# Of the video processor's class, for a frame
CLIP_LIMITS = (128 * 28 * 28, 768 * 28 * 28)
LEVELS = 255  # what the bundle's statistics are divided by
# Pillow's numbers of its filters
FILTERS: dict[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Section:
    """The object that a processor is made from, and where it stands."""

    file: str
    prefix: str  # of its keys in the file
    values: Mapping[str, Any]

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, which may be null; the default where it is not there."""
        return self.values.get(key, default)

    def trace(self, setting: str, value: Any, *keys: str) -> Origin:
        """Where a setting came from: the first of the keys that is there, or the default."""
        for key in keys:
            outer, _, inner = key.partition(".")
            found = self.values.get(outer)
            if inner and isinstance(found, Mapping):
                found = found.get(inner)
            if found is not None:
                return Origin(setting, value, self.file, f"{self.prefix}{key}")
        return Origin(setting, value)


def read_pixel_budget(folder: Path, spec: ModelSpec) -> PixelBudget:
    """The value of `find_pixel_budget` alone."""
    return find_pixel_budget(folder, spec).value


def find_pixel_budget(folder: Path, spec: ModelSpec) -> Found[PixelBudget]:
    """Limits, filter and statistics of pictures as transformers resolves them.

    Rescaling and normalization become the mean and standard deviation of levels from 0 to 1: (x f -
    mean) / std = (x / 255 - mean / 255 f) / (std / 255 f).

    Raises:
        ValueError: a value that is no limit or no statistics, one that is refused by name, patches
            that differ from the model's, or clips of other statistics than pictures.
    """
    section = _find_section(folder, "image_processor", ("preprocessor_config.json",))
    unusual = check_keys(SECTION, section.values, RULES)
    path = folder / "processor_config.json"
    unusual += check_keys(PROCESSOR_SECTION, read_json(path) if path.exists() else {}, RULES)
    if not _flag(section, "do_resize"):
        raise ValueError(
            f"{section.file}: do_resize is null, which transformers takes as false: pictures must "
            "be resized to whole visual tokens"
        )
    _check_patches(section, spec)
    budget = _read_budget(section)
    origins = (
        section.trace("pixels.min_pixels", budget.min_pixels, "min_pixels", "size.shortest_edge"),
        section.trace("pixels.max_pixels", budget.max_pixels, "max_pixels", "size.longest_edge"),
        section.trace("pixels.image_mean", budget.image_mean, "image_mean"),
        section.trace("pixels.image_std", budget.image_std, "image_std"),
        section.trace("pixels.resample", budget.resample, "resample"),
    )
    clips = _read_clips(folder, spec, budget)
    if clips.value is not None:
        budget = dataclasses.replace(
            budget, clip_min_pixels=clips.value[0], clip_max_pixels=clips.value[1]
        )
        origins += clips.origins
    unusual += clips.unusual
    if section.file == "processor_config.json" and (folder / "preprocessor_config.json").exists():
        unusual += ("preprocessor_config.json is not read: processor_config.json counts first",)
    return Found(budget, origins, unusual)


def _find_section(folder: Path, name: str, files: tuple[str, ...]) -> _Section:
    path = folder / "processor_config.json"
    processor = read_json(path) if path.exists() else {}
    if (values := processor.get(name)) is not None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{path}: {name} is {values!r:.80}, an object is needed")
        return _Section(path.name, f"{name}.", values)
    for file in files:
        if (folder / file).exists():
            return _Section(file, "", read_json(folder / file))
    return _Section("", "", {})


def _check_patches(section: _Section, spec: ModelSpec) -> None:
    sizes = {
        "patch_size": (spec.vision.patch_size, 14),
        "temporal_patch_size": (spec.vision.temporal_patch_size, 2),
        "merge_size": (spec.vision.spatial_merge_size, 2),
    }
    for key, (needed, default) in sizes.items():
        if (got := section.get(key, default)) != needed:
            raise ValueError(f"{section.file}: {key} is {got!r:.80}, config.json needs {needed}")


def _read_budget(section: _Section) -> PixelBudget:
    smallest, largest = _read_limits(section)
    mean, std = _read_statistics(section)
    return PixelBudget(smallest, largest, mean, std, _read_filter(section))


def _read_filter(section: _Section) -> Resample:
    resample = section.get("resample", 3)
    if type(resample) is not int or resample not in FILTERS:
        known = ", ".join(f"{number} {name}" for number, name in FILTERS.items())
        raise ValueError(
            f"{section.file}: resample is {resample!r:.80}, a Pillow filter is needed: {known}"
        )
    return FILTERS[resample]


def _read_limits(
    section: _Section,
    defaults: tuple[int, int] = (DEFAULT_MIN_PIXELS, DEFAULT_MAX_PIXELS),
) -> tuple[int, int]:
    default: Mapping[str, Any] = {"shortest_edge": defaults[0], "longest_edge": defaults[1]}
    size = section.get("size", None)
    size = default if size is None else size
    if not isinstance(size, Mapping):
        raise ValueError(
            f"{section.file}: size is {size!r:.80}, an object of shortest_edge and longest_edge "
            "is needed"
        )
    limits = []
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        value = section.get(old, None)
        value = size.get(new, size.get(old)) if value is None else value
        if type(value) is not int or value <= 0:
            raise ValueError(
                f"{section.file}: {old} ({new} of size) is {value!r:.80}, a positive number of "
                "pixels is needed"
            )
        limits.append(value)
    if limits[0] > limits[1]:
        raise ValueError(f"{section.file}: min_pixels {limits[0]} is above max_pixels {limits[1]}")
    return limits[0], limits[1]


def _read_statistics(section: _Section) -> tuple[_Triple, _Triple]:
    """Mean and standard deviation of levels from 0 to 1, whatever the processor's own scale is."""
    factor = 1.0
    if _flag(section, "do_rescale"):
        factor = section.get("rescale_factor", 1 / LEVELS)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
            raise ValueError(
                f"{section.file}: rescale_factor is {factor!r:.80}, a positive number is needed"
            )
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if _flag(section, "do_normalize"):
        mean = _triple(section, "image_mean", IMAGE_MEAN)
        std = _triple(section, "image_std", IMAGE_STD)
    return fold_statistics(mean, std, factor)


def fold_statistics(mean: _Triple, std: _Triple, factor: float) -> tuple[_Triple, _Triple]:
    """Statistics of levels times `factor` as those of levels from 0 to 1."""
    if factor == 1 / LEVELS:
        return mean, std
    scale = LEVELS * factor
    return (
        (mean[0] / scale, mean[1] / scale, mean[2] / scale),
        (std[0] / scale, std[1] / scale, std[2] / scale),
    )


def _flag(section: _Section, key: str) -> bool:
    """A switch that is on; transformers takes null as off."""
    value = section.get(key, True)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ValueError(f"{section.file}: {key} is {value!r:.80}, true or false is needed")
    return value


def _triple(section: _Section, key: str, default: _Triple) -> _Triple:
    value = section.get(key, list(default))
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(map(_is_finite, values)):
        raise ValueError(f"{section.file}: {key} is {value!r:.80}: no triple of finite numbers")
    if key == "image_std" and min(values) <= 0:
        raise ValueError(f"{section.file}: image_std is {value!r:.80}, needed numbers over 0")
    return float(values[0]), float(values[1]), float(values[2])


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def find_clip_limits(folder: Path, pixels: PixelBudget) -> Found[tuple[int, int] | None]:
    """Limits of a clip's frames; None: no file has any of their own, or they are the pictures'.

    Raises:
        ValueError: a value that is no limit.
    """
    section = _find_clips(folder)
    if not section.file:
        return Found(None)  # transformers falls back to the pictures' own
    limits = _read_limits(section, CLIP_LIMITS)
    if limits == (pixels.min_pixels, pixels.max_pixels):
        return Found(None)
    return Found(
        limits,
        (
            section.trace("pixels.clip_min_pixels", limits[0], "min_pixels", "size.shortest_edge"),
            section.trace("pixels.clip_max_pixels", limits[1], "max_pixels", "size.longest_edge"),
        ),
    )


def _find_clips(folder: Path) -> _Section:
    return _find_section(folder, "video_processor", ("video_preprocessor_config.json",))


def _read_clips(
    folder: Path, spec: ModelSpec, budget: PixelBudget
) -> Found[tuple[int, int] | None]:
    """Clips go through the picture's filter and statistics: a checkpoint must ask for no others."""
    section = _find_clips(folder)
    if not section.file:
        return Found(None)
    unusual = check_keys(VIDEO_SECTION, section.values, RULES)
    if not _flag(section, "do_resize"):
        raise ValueError(
            f"{section.file}: do_resize is null: clips must be resized as pictures are"
        )
    _check_patches(section, spec)
    mean, std = _read_statistics(section)
    for key, got, needed in (
        ("image_mean", mean, budget.image_mean),
        ("image_std", std, budget.image_std),
        ("resample", _read_filter(section), budget.resample),
    ):
        if got != needed:
            raise ValueError(
                f"{section.file}: {section.prefix}{key} makes clips {got}, pictures have {needed}: "
                "one for both is supported"
            )
    return dataclasses.replace(find_clip_limits(folder, budget), unusual=unusual)
