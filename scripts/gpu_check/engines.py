"""A bundle for TensorRT-RTX -> its engines, for this GPU or, in a dry run, for two others."""

from __future__ import annotations

import shutil
from typing import Any

from .bundles import ModelName, find_bundle
from .config import Config
from .precisions import DRY_CAPABILITIES, can_run
from .record import read_figures


def build(config: Config, model: ModelName, precision: str) -> dict[str, Any]:
    """Build; sizes, seconds and warnings, by what was built for.

    Raises:
        BackendError: TensorRT-RTX refuses the graphs.
        RuntimeError: it builds what the GPU has no arithmetic for.
    """
    if config.dry_run:
        return {
            each: _build_without_gpu(config, model, precision, each) for each in DRY_CAPABILITIES
        }
    from .rtx_target import chosen_target

    # What the probe built lies in the bundle too: it would be taken for this one's.
    shutil.rmtree(find_bundle(config, model, precision) / "engines", ignore_errors=True)
    with chosen_target(read_figures(config.work, "probe")["target"]):
        return {"gpu": _build(config, model, precision, None)}


def make_settings(config: Config, model: ModelName, capability: str | None) -> Any:
    """How large the requests may be: as small as the check needs, to build fast."""
    from vlmedge.export.engines.settings import BuildSettings
    from vlmedge.runtime.decode.generate import PREFILL_TOKENS

    if model == "sample":
        return BuildSettings(compute_capability=capability)
    return BuildSettings(
        max_pixels=max(config.sides) ** 2,
        prefill_tokens=min(config.prompt_tokens, PREFILL_TOKENS),
        compute_capability=capability,
    )


def _build(
    config: Config, model: ModelName, precision: str, capability: str | None
) -> dict[str, Any]:
    from vlmedge.export.engines.build import build_engines

    bundle = find_bundle(config, model, precision)
    made = build_engines(bundle, make_settings(config, model, capability), "tensorrt_rtx")
    engines = [engine for chain in made.engine_set.chains.values() for engine in chain]
    return {
        "version": made.engine_set.version,
        "seconds": made.seconds,
        "bytes": {engine.name: engine.bytes for engine in engines},
        "peak_bytes": max(made.peak_bytes.values()),
        "warnings": {name: list(lines) for name, lines in made.warnings.items()},
    }


def _build_without_gpu(
    config: Config, model: ModelName, precision: str, capability: str
) -> dict[str, Any]:
    """Build what that GPU can run; see that the rest is refused."""
    from vlmedge.runtime.errors import BackendError

    if can_run(precision, capability):
        return _build(config, model, precision, capability)
    try:
        _build(config, model, precision, capability)
    except BackendError as error:
        return {"refused": str(error)}
    raise RuntimeError(f"{precision} was built for {capability}, which has no arithmetic for it")
