"""What calibration found, layer by layer, in one JSON file that people read, compare and use again.

    {"schema": 1, "model": "...", "data": "data.jsonl", "data_sha256": "...", "num_examples": 64,
     "layers": {"visual.blocks.0.attn.qkv": {"stats": {...}, "migration": {...} or null}, ...}}

`model` is a hash over the float bundle's weight files: ranges of one model mean nothing to another.
A recipe of static scales can be applied again from the file alone; roundings that look at the
activations themselves (awq, gptq) need the data again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.manifest import Manifest
from .atomic import write_text
from .histogram import ActivationStats, Histogram
from .strict_json import check_keys, read_number, read_vector, write_vector

SCHEMA = 1
MAX_CACHE_BYTES = 1 << 30
_KEYS = ("schema", "model", "data", "data_sha256", "num_examples", "layers")
_MIGRATION_KEYS = ("format", "ranges", "strength", "error", "error_without", "scales", "histogram")


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """How the outliers of one layer's input were moved into its weights.

    Attributes:
        format, ranges: what the strength was searched for.
        strength: None: leaving it alone was best.
        error, error_without: relative error of the layer's output with it and without.
        scales: float32[K], powers of two, by which the input is divided.
        histogram: of the divided input.
    """

    format: str
    ranges: str
    strength: float | None
    error: float
    error_without: float
    scales: NDArray[np.float32]
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class LayerCalibration:
    """Of one layer's input."""

    stats: ActivationStats
    migration: MigrationRecord | None = None


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
    weights = sorted(record.sha256 for name, record in manifest.files.items() if ".data" in name)
    return hashlib.sha256(" ".join(weights).encode()).hexdigest()


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
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no calibration: {error}") from error
    try:
        check_keys(data, _KEYS)
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema is {data['schema']!r}, needed {SCHEMA}: calibrate again")
        for key in ("model", "data", "data_sha256"):
            if not isinstance(data[key], str):
                raise ValueError(f"{key} is {data[key]!r:.40}, needed text")
        if type(data["num_examples"]) is not int or not isinstance(data["layers"], Mapping):
            raise ValueError("num_examples must be a count, layers an object")
        layers = {name: layer_from_dict(name, layer) for name, layer in data["layers"].items()}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; calibrate again") from error
    if data["model"] != model:
        raise ValueError(f"{path} was made from another model: calibrate again with --data")
    return Calibration(model, data["data"], data["data_sha256"], data["num_examples"], layers)


def layer_to_dict(layer: LayerCalibration) -> dict[str, Any]:
    """One layer as JSON holds it."""
    return {
        "stats": layer.stats.to_dict(),
        "migration": layer.migration and _migration_to_dict(layer.migration),
    }


def _migration_to_dict(migration: MigrationRecord) -> dict[str, Any]:
    return {
        "format": migration.format,
        "ranges": migration.ranges,
        "strength": migration.strength,
        "error": migration.error,
        "error_without": migration.error_without,
        "scales": write_vector(migration.scales),
        "histogram": migration.histogram.to_json(),
    }


def layer_from_dict(name: str, data: Any) -> LayerCalibration:
    """One layer from JSON.

    Raises:
        ValueError: names the layer and the key.
    """
    try:
        check_keys(data, ("stats", "migration"))
        stats = ActivationStats.from_dict(data["stats"])
        if data["migration"] is None:
            return LayerCalibration(stats)
        return LayerCalibration(stats, _read_migration(data["migration"], len(stats.channel_amax)))
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error


def _read_migration(data: Any, num_channels: int) -> MigrationRecord:
    check_keys(data, _MIGRATION_KEYS)
    for key in ("format", "ranges"):
        if not isinstance(data[key], str):
            raise ValueError(f"{key} is {data[key]!r:.40}, needed text")
    scales = read_vector(data, "scales", num_channels, np.float32)
    if not (scales > 0).all():
        raise ValueError("scales hold 0, needed powers of two")
    return MigrationRecord(
        format=data["format"],
        ranges=data["ranges"],
        strength=None if data["strength"] is None else read_number(data, "strength"),
        error=read_number(data, "error"),
        error_without=read_number(data, "error_without"),
        scales=scales,
        histogram=Histogram.from_json(data["histogram"]),
    )
