"""A checkpoint's image processor settings -> the bundle's pixel budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.manifest import PixelBudget
from .config import ModelSpec
from .json_file import read_json

# Of a checkpoint without preprocessor_config.json: Qwen2-VL's own limits and CLIP's statistics.
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 1280 * 28 * 28
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def read_pixel_budget(folder: Path, spec: ModelSpec) -> PixelBudget:
    """Limits and normalization from preprocessor_config.json, in its old and its new form.

    Raises:
        ValueError: a value that is no limit or no statistics, or patches that differ from the
            model's.
    """
    path = folder / "preprocessor_config.json"
    config = read_json(path) if path.exists() else {}
    size = config.get("size")
    size = size if isinstance(size, Mapping) else {}
    sizes = {
        "patch_size": spec.vision.patch_size,
        "temporal_patch_size": spec.vision.temporal_patch_size,
        "merge_size": spec.vision.spatial_merge_size,
    }
    for key, needed in sizes.items():
        if config.get(key, needed) != needed:
            raise ValueError(f"{path}: {key} is {config[key]!r}, config.json needs {needed}")
    budget = PixelBudget(
        min_pixels=_limit(path, config, size, "min_pixels", "shortest_edge", DEFAULT_MIN_PIXELS),
        max_pixels=_limit(path, config, size, "max_pixels", "longest_edge", DEFAULT_MAX_PIXELS),
        image_mean=_statistics(path, config.get("image_mean"), IMAGE_MEAN),
        image_std=_statistics(path, config.get("image_std"), IMAGE_STD),
    )
    if budget.min_pixels > budget.max_pixels or min(budget.image_std) <= 0:
        raise ValueError(f"{path}: limits or statistics make no sense: {budget}")
    return budget


def _limit(
    path: Path, config: Mapping[str, Any], size: Mapping[str, Any], old: str, new: str, default: int
) -> int:
    value = config.get(old)
    if value is None:
        value = size.get(new, size.get(old))
    if value is None:
        return default
    if type(value) is not int or value <= 0:
        raise ValueError(f"{path}: {old} is {value!r}, a positive number of pixels is needed")
    return value


def _statistics(
    path: Path, value: Any, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if value is None:
        return default
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        raise ValueError(f"{path}: {value!r} is no triple of numbers, one a color channel")
    return (float(value[0]), float(value[1]), float(value[2]))
