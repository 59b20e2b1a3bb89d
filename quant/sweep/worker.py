"""Do one unit of a sweep in a process of its own: JSON in, JSON out; bundles lie on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.errors import BackendError
from ...runtime.peak_memory import read_peak_bytes
from ..check.plan import CheckPlan
from ..check.run import run_check
from ..compare.checkpoints import ENTRY
from ..compare.reference import GROUP
from ..data.examples import DataSet
from ..data.open_data import open_data
from ..quantize.quantize import quantize_bundle
from ..recipe.toml import parse_recipe
from ..report.result_json import to_json
from .merge import take_shard


def export_float(checkpoint: str, bundle: str) -> dict[str, Any]:
    """Checkpoint -> float bundle, once for all recipes.

    Raises:
        BackendError: no exporter is installed.
    """
    Path(bundle).parent.mkdir(parents=True, exist_ok=True)
    for entry in entry_points(group=GROUP, name=ENTRY):
        entry.load()(checkpoint, Path(bundle), None, None)
        return {"bytes": count_bytes(read_manifest(Path(bundle)))}
    raise BackendError(
        f"{checkpoint} is no bundle, and no exporter is installed here: pip install "
        "'vlmedge[export]', or export it first"
    )


def quantize(
    source: str, bundle: str, recipe: str, data: Mapping[str, Any] | None, num_threads: int
) -> dict[str, Any]:
    """Float bundle and recipe -> quantized bundle; goes on from the layers of a killed try.

    Args:
        source: the float bundle.
        bundle: the folder to write.
        recipe: its TOML.
        data: arguments of `read_data`.
        num_threads: of one operator.
    """
    chosen = parse_recipe(recipe, "the recipe")
    examples = read_data(**data) if data is not None and chosen.needs_data else None
    Path(bundle).parent.mkdir(parents=True, exist_ok=True)
    made = quantize_bundle(source, bundle, chosen, examples, num_threads=num_threads)
    return {"bytes": count_bytes(made.manifest), "peak_bytes": read_peak_bytes()}


def check_shard(
    bundle: str,
    against: str,
    data: Mapping[str, Any],
    shard: int,
    num_shards: int,
    levels: Sequence[str],
    max_new_tokens: int,
    num_speed_runs: int,
    num_threads: int | None,
) -> dict[str, Any]:
    """A bundle and its reference on one shard of the data -> the report's JSON."""
    examples = take_shard(read_data(**data), shard, num_shards)
    plan = CheckPlan(
        levels=tuple(levels),  # type: ignore[arg-type]  # CheckPlan checks the words
        max_new_tokens=max_new_tokens,
        num_speed_runs=num_speed_runs,
        num_threads=num_threads,
    )
    return json.loads(to_json(run_check(bundle, against, examples, plan)))


def read_data(
    source: str,
    limit: int | None,
    seed: int,
    skip_bad: bool,
    task: str | None,
    sha256: str,
    media_root: str | None = None,
) -> DataSet:
    """The examples that the sweep was planned with.

    Raises:
        ValueError: they have changed since.
    """
    root = Path(media_root) if media_root else None
    data = open_data(source, limit=limit, seed=seed, skip_bad=skip_bad, task=task, media_root=root)
    if data.sha256 != sha256:
        raise ValueError(f"{source} has changed since the sweep was started: start it again")
    return data


def count_bytes(manifest: Manifest) -> int:
    """Size of a bundle's files."""
    return sum(record.bytes for record in manifest.files.values())
