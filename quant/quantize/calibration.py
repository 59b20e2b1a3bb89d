"""Keep what calibration found in one JSON file that people read, compare and use again.

    {"schema": 1, "model": "...", "data": "data.jsonl", "data_sha256": "...", "num_examples": 64,
     "layers": {"visual.blocks.0.attn.qkv": {"stats": {...}, "range": {...} or null}, ...}}

`model` is a hash over the float bundle's weight files: ranges of one model mean nothing to another.
A recipe of static scales can be applied again from the file alone; roundings that look at the
activations themselves (awq, gptq) need the data again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import Manifest
from ...runtime.files.json_text import parse_json
from ...runtime.files.regular_file import read_regular
from ..files.atomic import write_text
from ..files.strict_json import check_keys, read_number, read_vector, shorten, write_vector
from ..rounding.histogram import ActivationStats
from .input_range import InputRange

SCHEMA = 1
MAX_CACHE_BYTES = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = ("schema", "model", "data", "data_sha256", "num_examples", "layers")
_TEXTS = ("format", "ranges", "smooth", "wants_shift")
_NUMBERS = ("percentile", "amax", "error", "error_without")
_RANGE_KEYS = (*_TEXTS, *_NUMBERS, "strength", "scales", "shift")


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """Of one layer's input.

    Attributes:
        stats: of the input as it comes.
        range: of static formats.
    """

    stats: ActivationStats
    range: InputRange | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of all layers that were seen."""

    model: str
    data: str
    data_sha256: str
    num_examples: int
    layers: dict[str, LayerCalibration] = field(default_factory=dict)


def hash_model(manifest: Manifest) -> str:
    """One hash over a float bundle's weights, whatever it is called."""
    names = [name for name in manifest.files if name.endswith(".data")]
    weights = sorted(manifest.files[name].sha256 for name in {*names, *manifest.embedding.files})
    return hashlib.sha256(" ".join(weights).encode()).hexdigest()


def hash_files(manifest: Manifest) -> str:
    """One hash over all files of a bundle, its graphs as well."""
    lines = [f"{record.sha256} {name}" for name, record in sorted(manifest.files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Of a calibration file, whose numbers people may change."""
    return hashlib.sha256(read_regular(path)).hexdigest()


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, whole or not at all."""
    content = {
        "schema": SCHEMA,
        "model": calibration.model,
        "data": calibration.data,
        "data_sha256": calibration.data_sha256,
        "num_examples": calibration.num_examples,
        "layers": {name: layer_to_dict(layer) for name, layer in calibration.layers.items()},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_calibration(path: Path, model: str) -> Calibration:
    """Read the file of one model.

    Raises:
        ValueError: no file, a damaged one (it says where), or another model's.
    """
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            raise ValueError(f"{path} has over {MAX_CACHE_BYTES} bytes: this is no calibration")
        data = parse_json(read_regular(path), "it")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no calibration: {error}") from error
    try:
        layers = _read_content(data)
    except ValueError as error:
        text = " ".join(str(error).split())  # names of layers can hold a line's end
        raise ValueError(f"{path} is damaged: {text}; calibrate again") from error
    if data["model"] != model:
        raise ValueError(f"{path} was made from another model: calibrate again with --data")
    return Calibration(model, data["data"], data["data_sha256"], data["num_examples"], layers)


def _read_content(data: Any) -> dict[str, LayerCalibration]:
    check_keys(data, _KEYS)
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema is {shorten(data['schema'])}, needed {SCHEMA}")
    for key in ("model", "data", "data_sha256"):
        if not isinstance(data[key], str):
            raise ValueError(f"{key} is {shorten(data[key])}, needed text")
    if not _SHA256.fullmatch(data["data_sha256"]):
        raise ValueError(f"data_sha256 is {shorten(data['data_sha256'])}: no SHA-256")
    if type(data["num_examples"]) is not int or not isinstance(data["layers"], Mapping):
        raise ValueError("num_examples must be a count, layers an object")
    return {name: layer_from_dict(name, layer) for name, layer in data["layers"].items()}


def layer_to_dict(layer: LayerCalibration) -> dict[str, Any]:
    """One layer as JSON holds it."""
    return {"stats": layer.stats.to_dict(), "range": layer.range and _range_to_dict(layer.range)}


def layer_from_dict(name: str, data: Any) -> LayerCalibration:
    """One layer from JSON.

    Raises:
        ValueError: names the layer and the key.
    """
    try:
        check_keys(data, ("stats", "range"))
        stats = ActivationStats.from_dict(data["stats"])
        if data["range"] is None:
            return LayerCalibration(stats)
        return LayerCalibration(stats, _read_range(data["range"], len(stats.channel_amax)))
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error


def _range_to_dict(found: InputRange) -> dict[str, Any]:
    content: dict[str, Any] = {key: getattr(found, key) for key in _RANGE_KEYS}
    for key in ("scales", "shift"):
        vector = getattr(found, key)
        content[key] = None if vector is None else write_vector(vector)
    return content


def _read_range(data: Any, num_channels: int) -> InputRange:
    check_keys(data, _RANGE_KEYS)
    for key in _TEXTS:
        if not isinstance(data[key], str):
            raise ValueError(f"{key} is {shorten(data[key])}, needed text")
    amax = read_number(data, "amax")
    if amax > float(np.finfo(np.float32).max):
        raise ValueError(f"amax is {amax}, which is no float32")
    scales = None
    if data["scales"] is not None:
        scales = read_vector(data, "scales", num_channels, np.float32)
        if (np.frexp(scales)[0] != 0.5).any():
            raise ValueError("scales hold other numbers than powers of two")
    shift = None
    if data["shift"] is not None:
        shift = read_vector(data, "shift", num_channels, np.float32, signed=True)
    return InputRange(
        wants_shift=data["wants_shift"],
        shift=shift,
        format=data["format"],
        ranges=data["ranges"],
        smooth=data["smooth"],
        percentile=read_number(data, "percentile"),
        amax=amax,
        error=read_number(data, "error"),
        error_without=read_number(data, "error_without"),
        strength=None if data["strength"] is None else read_number(data, "strength"),
        scales=scales,
    )
