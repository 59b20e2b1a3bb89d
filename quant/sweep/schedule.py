"""Turn a sweep into units of work, and say which of them each bundle takes.

OUT/bundles/SOURCE/RECIPE   the bundles that are made; OUT/bundles/SOURCE/float of a checkpoint
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime import __version__
from ...runtime.bundle.manifest import MANIFEST_NAME
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.files.regular_file import read_regular
from ..check.plan import CheckPlan, choose_levels
from ..compare.reference import is_bundle
from ..data.examples import DataSet
from ..data.open_data import open_data
from ..recipe.toml import format_recipe
from .plan import CalibrationSection, DataSection, Sweep
from .units import Unit, fingerprint_units

_FUNCTIONS = "vlmedge.quant.sweep.worker"
# Levels that are measured example by example; the others look at all the data, once
_BY_EXAMPLE = ("embeddings", "logits", "texts")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One bundle to judge, and the keys of the units that it takes.

    Attributes:
        name: "SOURCE/RECIPE", or a ready bundle's own name.
        recipe: its name; None: a ready bundle.
        needs: units that make it and what it is compared with.
        checks: units that check it, speed left out.
        speed: the unit that measures it alone; None: it is not measured.
    """

    name: str
    source: str
    recipe: str | None
    bundle: Path
    against: str
    needs: tuple[str, ...]
    checks: tuple[str, ...]
    speed: str | None

    @property
    def quantize(self) -> str | None:
        """The unit that makes the bundle; None: it is there."""
        return f"quantize/{self.name}" if self.recipe is not None else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """All units of a sweep.

    Attributes:
        units: may run side by side.
        alone: measure time, so nothing may run beside them.
    """

    data: DataSet
    candidates: tuple[Candidate, ...]
    units: tuple[Unit, ...]
    alone: tuple[Unit, ...]


def make_schedule(sweep: Sweep, out: Path, num_threads: int) -> Schedule:
    """Read the data and lay out the units.

    Args:
        sweep: what is swept.
        out: folder for everything that is made.
        num_threads: of each unit.

    Raises:
        ValueError: bad data, a level that it can't be checked at, a missing or damaged bundle.
    """
    data = _open(sweep.data)
    calibration = _open(sweep.calibration) if sweep.calibration else None
    if calibration is not None and calibration.sha256 == data.sha256:
        raise ValueError(
            f"{data.name} is calibrated with and judged by: scores on examples that a bundle was "
            "fitted to say nothing, name others"
        )
    with_bundle = sweep.check.against is None or is_bundle(sweep.check.against)
    choose_levels(CheckPlan(levels=sweep.check.levels), data, with_bundle=with_bundle)
    maker = _UnitMaker(sweep, out.absolute(), data, calibration, num_threads)
    for name, source in sweep.sources.items():
        maker.add_source(name, source)
    for name, bundle in sweep.bundles.items():
        maker.add_bundle(name, bundle)
    return Schedule(data, tuple(maker.candidates), tuple(maker.units), tuple(maker.alone))


class _UnitMaker:
    """Collects candidates and their units."""

    def __init__(
        self,
        sweep: Sweep,
        out: Path,
        data: DataSet,
        calibration: DataSet | None,
        num_threads: int,
    ) -> None:
        self.candidates: list[Candidate] = []
        self.units: list[Unit] = []
        self.alone: list[Unit] = []
        self._sweep = sweep
        self._bundles = out / "bundles"
        self._threads = {"num_threads": num_threads}
        self._num_shards = min(sweep.data.num_shards, len(data.examples))
        self._data = _as_kwargs(sweep.data, data.sha256)
        self._calibration = None
        if sweep.calibration is not None and calibration is not None:
            self._calibration = _as_kwargs(sweep.calibration, calibration.sha256)
        self._makers: dict[str, str] = {}  # bundle that a unit makes -> the unit's key
        self._floats: dict[str, str] = {}  # source -> its float bundle

    def add_source(self, name: str, source: str) -> None:
        """A float bundle, or a checkpoint that becomes one; by every recipe."""
        bundle = source
        if not is_bundle(source):
            bundle = str(self._bundles / name / "float")
            kwargs = {"checkpoint": source, "bundle": bundle}
            inputs = {"checkpoint": _hash_model(source), "vlmedge": __version__}
            self._add_maker(f"export/{name}", "export_float", kwargs, inputs, {})
        self._floats[name] = bundle
        for recipe_name, recipe in self._sweep.recipes.items():
            made = self._bundles / name / recipe_name
            kwargs = {
                "source": bundle,
                "bundle": str(made),
                "recipe": format_recipe(recipe),
                "data": self._calibration if recipe.needs_data else None,
            }
            key = f"quantize/{name}/{recipe_name}"
            self._add_maker(key, "quantize", kwargs, self._hash_all([bundle]), self._threads)
            self._add_checks(f"{name}/{recipe_name}", name, recipe_name, made, bundle)

    def add_bundle(self, name: str, bundle: str) -> None:
        """A ready bundle; held against the only source if nothing else is named."""
        float_bundle = next(iter(self._floats.values()), "")
        self._add_checks(name, "", None, Path(bundle), float_bundle)

    def _add_maker(
        self,
        key: str,
        function: str,
        kwargs: Mapping[str, Any],
        inputs: Mapping[str, str],
        means: Mapping[str, Any],
    ) -> None:
        """A unit that makes kwargs["bundle"]."""
        needs = self._find_makers([kwargs["source"]] if "source" in kwargs else [])
        outputs = (f"{kwargs['bundle']}/{MANIFEST_NAME}",)
        unit = Unit(key, f"{_FUNCTIONS}:{function}", kwargs, needs, inputs, means, outputs)
        self.units.append(unit)
        self._makers[kwargs["bundle"]] = key

    def _add_checks(
        self, title: str, source: str, recipe: str | None, bundle: Path, float_bundle: str
    ) -> None:
        check = self._sweep.check
        against = check.against or float_bundle
        models = [str(bundle), against]
        needs, inputs = self._find_makers(models), self._hash_all(models)
        levels = [
            level
            for level in _BY_EXAMPLE
            if level in check.levels or (level == "texts" and "tasks" in check.levels)
        ]
        parts = {
            f"check/{title}/{shard}-of-{self._num_shards}": (levels, shard, self._num_shards)
            for shard in range(self._num_shards if levels else 0)
        }
        if "layers" in check.levels:
            parts[f"layers/{title}"] = (["layers"], 0, 1)
        if not parts and "speed" not in check.levels:
            parts[f"settings/{title}"] = (["settings"], 0, 1)

        def make_unit(key: str, part: tuple[list[str], int, int], means: Mapping[str, Any]) -> Unit:
            kwargs = {
                "bundle": str(bundle),
                "against": against,
                "data": self._data,
                "max_new_tokens": check.max_new_tokens,
                "num_speed_runs": check.num_speed_runs,
                **dict(zip(("levels", "shard", "num_shards"), part, strict=True)),
            }
            return Unit(key, f"{_FUNCTIONS}:check_shard", kwargs, needs, inputs, means)

        self.units += [make_unit(key, part, self._threads) for key, part in parts.items()]
        speed = None
        if "speed" in check.levels:
            speed = f"speed/{title}"
            unit = make_unit(speed, (["speed"], 0, 1), {"num_threads": None})
            # What it needs is done when it is its turn, in a run of its own: as hashes.
            prints = fingerprint_units(self.units)
            known = {key: prints[key] for key in needs}
            self.alone.append(dataclasses.replace(unit, needs=(), inputs={**inputs, **known}))
        self.candidates.append(
            Candidate(title, source, recipe, bundle, against, needs, tuple(parts), speed)
        )

    def _find_makers(self, bundles: Sequence[str]) -> tuple[str, ...]:
        return tuple(self._makers[bundle] for bundle in bundles if bundle in self._makers)

    def _hash_all(self, models: Sequence[str]) -> dict[str, str]:
        """What decides a unit's result besides its keywords and what it needs."""
        hashes = {model: _hash_model(model) for model in models if model not in self._makers}
        return {"vlmedge": __version__, **hashes}


def _open(section: DataSection | CalibrationSection) -> DataSet:
    return open_data(
        section.source,
        limit=section.limit,
        seed=section.seed,
        skip_bad=section.skip_bad,
        task=section.task,
        media_root=Path(section.media_root) if section.media_root else None,
    )


def _as_kwargs(section: DataSection | CalibrationSection, sha256: str) -> dict[str, Any]:
    """Arguments of `sweep_units.read_data`."""
    kwargs = dataclasses.asdict(section) | {"sha256": sha256}
    kwargs.pop("num_shards", None)
    return kwargs


def _hash_model(path: str) -> str:
    """A bundle's manifest, which holds its files' hashes; a checkpoint's file names and times.

    Raises:
        BundleError: a bundle that is damaged.
    """
    folder = Path(path)
    if is_bundle(folder):
        read_manifest(folder)  # what is wrong with it is told before the work
        return hashlib.sha256(read_regular(folder / MANIFEST_NAME)).hexdigest()
    if not folder.is_dir():
        return path  # a hub id
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()
