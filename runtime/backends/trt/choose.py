"""Choose the engine set of a bundle that fits this GPU, this TensorRT and these graphs.

An engine runs where it was built, with the TensorRT it was built with; elsewhere TensorRT fails in
its own words or not at all. So nothing is deserialized before its record fits, and what doesn't fit
is told with the command that builds it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...bundle.manifest import Manifest
from ...errors import BackendError, BundleError
from .engine_set import (
    ENGINE_SET_NAME,
    ENGINES_FOLDER,
    Builder,
    EngineSet,
    Gpu,
    advise_rebuild,
    is_of_script,
    read_engine_set,
    record_weights,
)

NUMBERS_OF_RELEASE = 3  # major, minor, patch
BUILDER_NAMES: dict[Builder, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True, slots=True)
class ChosenSet:
    """What is to be loaded, from where.

    Attributes:
        notices: what a caller should know about it, a line each.
    """

    folder: Path
    engine_set: EngineSet
    notices: tuple[str, ...]


def choose_set(
    bundle: Path, manifest: Manifest, gpu: Gpu, builders: Mapping[Builder, str]
) -> ChosenSet:
    """Choose among BUNDLE/engines/*/.

    Args:
        bundle: the folder.
        manifest: of the bundle.
        gpu: that engines will run on.
        builders: what is installed, with its version; of several sets that fit, the first's.

    Raises:
        BackendError: none fits: what the nearest was built for, and the command that builds one.
        BundleError: there are only damaged ones.
    """
    sets, damages = _read_sets(bundle)
    command = f"vlmedge build {shlex.quote(str(bundle))}"
    if damages and not sets:
        raise next(iter(damages.values()))
    if not sets:
        raise BackendError(
            f"{bundle} holds no engines: build them on this machine with `{command}`"
        )
    misfits = {
        folder: find_misfits(engine_set, manifest, gpu, builders)
        for folder, engine_set in sets.items()
    }
    order, notices = list(builders), _describe_damages(damages)
    fitting = [folder for folder in sets if not misfits[folder]]
    if not fitting:
        nearest = min(sets, key=lambda folder: len(misfits[folder]))
        advice = f"build them on this machine with `{command}`"
        if is_of_script(sets[nearest]) and find_changes(sets[nearest], manifest):
            advice = advise_rebuild(sets[nearest])
        elif sets[nearest].gpu.sm == gpu.sm:  # the command of another GPU's may name it
            advice = f"build them on this machine with `{sets[nearest].command}`"
        told = [f"engines in {nearest} {misfits[nearest][0]}: {advice}", *notices]
        raise BackendError("; ".join(told))

    def rank(folder: Path) -> tuple[bool, int]:
        found = sets[folder]
        return found.gpu.name != gpu.name, order.index(found.builder)

    chosen = min(fitting, key=rank)
    built_for = sets[chosen].gpu.name
    if built_for and gpu.name and built_for != gpu.name:
        notices.append(
            f"engines in {chosen} were built on {built_for}, this GPU is {gpu.name}: they may be "
            f"slower than those of `{sets[chosen].command}`"
        )
    return ChosenSet(chosen, sets[chosen], tuple(notices))


def list_sets(bundle: Path) -> list[Path]:
    """The folders of a bundle's engine sets, without those that are being built."""
    return sorted(
        path.parent for path in (bundle / ENGINES_FOLDER).glob(f"[!.]*/{ENGINE_SET_NAME}")
    )


def _read_sets(bundle: Path) -> tuple[dict[Path, EngineSet], dict[Path, BundleError]]:
    """The sets of a bundle that can be read, and what is wrong with the others."""
    sets: dict[Path, EngineSet] = {}
    damages: dict[Path, BundleError] = {}
    for folder in list_sets(bundle):
        try:
            sets[folder] = read_engine_set(folder)
        except BundleError as error:
            damages[folder] = error
    return sets, damages


def _describe_damages(damages: Mapping[Path, BundleError]) -> list[str]:
    return [f"engines in {folder} are passed over: {error}" for folder, error in damages.items()]


def find_misfits(
    engine_set: EngineSet, manifest: Manifest, gpu: Gpu, builders: Mapping[Builder, str]
) -> list[str]:
    """Why a set must not be loaded here, the weightiest reason first; empty: it may."""
    reasons = []
    if engine_set.gpu.sm != gpu.sm:
        reasons.append(f"were built for {_describe(engine_set.gpu)}, this GPU is {_describe(gpu)}")
    name, version = BUILDER_NAMES[engine_set.builder], builders.get(engine_set.builder)
    if version is None:
        reasons.append(f"need {name} {engine_set.version}, which is not installed")
    elif not is_same_version(version, engine_set.version):
        reasons.append(f"were built by {name} {engine_set.version}, this machine has {version}")
    reasons += find_changes(engine_set, manifest)
    for graph in ("vision", "decoder"):
        if graph not in engine_set.chains:
            reasons.append(f"lack the {graph} graph")
    return reasons


def find_changes(engine_set: EngineSet, manifest: Manifest) -> list[str]:
    """What a set was built from that isn't the bundle's; empty: nothing."""
    reasons = []
    for graph, sha256 in sorted(engine_set.graph_sha256.items()):
        spec = manifest.graphs.get(graph)
        if spec is None:
            reasons.append(f"are of a {graph} graph, the bundle has none")
        elif manifest.files[spec.file].sha256 != sha256:
            reasons.append(f"were built from another {spec.file} than the bundle's")
    weights = record_weights(manifest)
    changed = sorted(
        name for name, sha256 in engine_set.weights_sha256.items() if weights.get(name) != sha256
    )
    if changed:
        reasons.append(f"were built from another {changed[0]} than the bundle's")
    return reasons


def is_same_version(one: str, other: str) -> bool:
    """Whether two spellings name one TensorRT: trtexec says 10.3.0 of what Python has as 10.3.0.30.

    Without a build number in one of them, the first three numbers decide.
    """
    first, second = one.split("."), other.split(".")
    count = min(len(first), len(second))
    return count >= NUMBERS_OF_RELEASE and first[:count] == second[:count]


def _describe(gpu: Gpu) -> str:
    number = f"compute capability {gpu.sm}"
    return f"{gpu.name} ({number})" if gpu.name else number
