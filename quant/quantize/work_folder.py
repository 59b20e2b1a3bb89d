"""Finished stages of a quantization on the disk: what a stopped run has done is not done again.

The folder lies beside the bundle that is being made and is named after all that decides its
content; another recipe, other data or another model never find it. A stage is written under a
temporary name and renamed, and the folder is renamed before it is removed, so that there are only
whole stages however a run ends. Who works in it has locked the target.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.files.json_text import parse_json
from ..files.named_errors import naming
from .calibration import LayerCalibration, layer_from_dict, layer_to_dict
from .layer_error import LayerError
from .linear_nodes import QuantizedLinear
from .plan import LayerPlan
from .stage_quantizer import StageResult

KEY_CHARS = 16
_STAGE_FILE = "stage.json"
_REMOVED = ".removed"  # of a folder that is on its way out
_ARRAYS = ("codes", "scales", "bias", "shift")


class WorkFolder:
    """The stages of one quantization."""

    def __init__(
        self, target: Path, *parts: str, before_save: Callable[[], None] = lambda: None
    ) -> None:
        """Name the folder; it is made with the first stage.

        Args:
            target: the bundle that is being made.
            parts: texts that decide the content: recipe, hashes of model and data, version.
            before_save: called before a stage is kept; what it raises keeps it out.
        """
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:KEY_CHARS]
        self._prefix = f".{target.absolute().name}.quantize-"
        self._parent = target.absolute().parent
        self.path = self._parent / f"{self._prefix}{key}"
        self._before_save = before_save

    def remove_others(self) -> None:
        """Remove what interrupted runs with other recipes to the same target left behind."""
        for path in self._parent.iterdir():
            key = path.name.removeprefix(self._prefix).removesuffix(_REMOVED)
            is_alike = path.name.startswith(self._prefix) and len(key) == KEY_CHARS
            if is_alike and path != self.path:
                _discard(path)

    def remove(self) -> None:
        """Remove everything: the bundle is complete."""
        _discard(self.path)

    def has(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return (self.path / stage / _STAGE_FILE).is_file()

    def save(self, stage: str, result: StageResult) -> None:
        """Write a finished stage.

        Raises:
            OSError: the disk is full; nothing half-written is left.
        """
        self._before_save()
        temporary = self.path / f"{stage}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, linear in result.linears.items():
                for array in _ARRAYS:
                    if (value := getattr(linear, array)) is not None:
                        _save(temporary / f"{name}.{array}.npy", value)
            for name, value in result.replaced.items():
                _save(temporary / f"{name}.replaced.npy", value)
            for name, value in result.scales.items():
                _save(temporary / f"{name}.divisors.npy", value)
            content = {
                "shifted": [n for n, linear in result.linears.items() if linear.shift is not None],
                "input_scales": {n: linear.input_scale for n, linear in result.linears.items()},
                "replaced": list(result.replaced),
                "divided": list(result.scales),
                "calibration": {n: layer_to_dict(c) for n, c in result.calibration.items()},
                "errors": {n: dataclasses.asdict(e) for n, e in result.errors.items()},
                "sha256": {path.name: _hash(path) for path in sorted(temporary.iterdir())},
            }
            content["content_sha256"] = _hash_content(content)
            with naming(temporary / _STAGE_FILE):
                (temporary / _STAGE_FILE).write_text(json.dumps(content), encoding="utf-8")
            shutil.rmtree(self.path / stage, ignore_errors=True)
            temporary.rename(self.path / stage)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def load(
        self, stage: str, plans: Mapping[str, LayerPlan], *, is_old: bool = False
    ) -> StageResult:
        """Read a finished stage; codes are mapped into memory.

        Args:
            stage: its name.
            plans: of its layers.
            is_old: an earlier run saved it; its files are read and their hashes compared, or a
                bundle's new hashes would hide what the disk did to it.

        Raises:
            ValueError: the stage is damaged, as after a power cut; says what to remove.
        """
        try:
            if is_old:
                _check_hashes(self.path / stage)
            return self._load(self.path / stage, plans)
        except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.path / stage}, left by an interrupted run, is damaged ({error}): remove "
                f"{self.path} and quantize again"
            ) from error

    def _load(self, folder: Path, plans: Mapping[str, LayerPlan]) -> StageResult:
        content: dict[str, Any] = parse_json(
            (folder / _STAGE_FILE).read_bytes(), _STAGE_FILE, with_infinity=True
        )

        def read(name: str, array: str) -> Any:
            return np.load(folder / f"{name}.{array}.npy", mmap_mode="r")

        linears = {
            name: QuantizedLinear(
                plans[name].recipe,
                read(name, "codes"),
                read(name, "scales"),
                input_scale,
                read(name, "bias") if plans[name].linear.bias else None,
                read(name, "shift") if name in content["shifted"] else None,
            )
            for name, input_scale in content["input_scales"].items()
        }
        calibration: dict[str, LayerCalibration] = {
            name: layer_from_dict(name, data) for name, data in content["calibration"].items()
        }
        return StageResult(
            linears=linears,
            replaced={name: read(name, "replaced") for name in content["replaced"]},
            calibration=calibration,
            errors={name: LayerError(**data) for name, data in content["errors"].items()},
            scales={name: read(name, "divisors") for name in content["divided"]},
        )


def _discard(folder: Path) -> None:
    """Remove a folder that is never found again by its name, not even half removed."""
    removed = folder
    if folder.suffix != _REMOVED:
        removed = folder.with_name(f"{folder.name}{_REMOVED}")
        shutil.rmtree(removed, ignore_errors=True)  # of a run that was killed while it removed
        with suppress(OSError):
            folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _check_hashes(folder: Path) -> None:
    """Compare a stage's files with the hashes that were saved with them.

    Raises:
        ValueError: a file is another.
    """
    content = parse_json((folder / _STAGE_FILE).read_bytes(), _STAGE_FILE, with_infinity=True)
    if not isinstance(content, dict) or content.pop("content_sha256") != _hash_content(content):
        raise ValueError(f"{_STAGE_FILE} has a wrong hash")
    for name, sha256 in content["sha256"].items():
        if _hash(folder / name) != sha256:
            raise ValueError(f"{name} has a wrong hash")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _save(path: Path, array: NDArray[Any]) -> None:
    with naming(path):
        np.save(path, array)
