"""Report what a bundle's engine sets were built for, and whether their files are unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.inspection import FileCheck, check_file
from ...bundle.manifest import FileRecord, Manifest
from ...errors import BundleError
from .engine_set import ENGINES_FOLDER, EngineSet, list_engines, read_engine_set, record_weights


@dataclass(frozen=True, slots=True)
class EngineSetCheck:
    """One folder of engines.

    Attributes:
        key: the folder's name.
        engine_set: None where it can't be read.
        problem: why it can't be used at all; "" where it can.
        files: its engines.
    """

    key: str
    engine_set: EngineSet | None
    problem: str
    files: tuple[FileCheck, ...]

    @property
    def is_bad(self) -> bool:
        """Whether it can't be trusted."""
        return bool(self.problem) or any(check.is_bad for check in self.files)


def check_engine_sets(
    bundle: Path,
    manifest: Manifest,
    *,
    with_hash: bool = True,
    on_bytes: Callable[[int], None] | None = None,
) -> list[EngineSetCheck]:
    """Look at every folder of BUNDLE/engines; arguments as of `check_file`."""
    root = bundle / ENGINES_FOLDER
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    checks = []
    for folder in folders:
        if folder.name.startswith("."):  # a build in progress, or what is left of one
            continue
        try:
            found = read_engine_set(folder)
        except BundleError as error:
            checks.append(EngineSetCheck(folder.name, None, str(error), ()))
            continue
        files = tuple(
            check_file(
                folder,
                engine.file,
                FileRecord(engine.bytes, engine.sha256),
                with_hash=with_hash,
                on_bytes=on_bytes,
            )
            for engine in list_engines(found)
        )
        problem = "" if _is_of_bundle(found, manifest) else "built of other graphs or weights"
        checks.append(EngineSetCheck(folder.name, found, problem, files))
    return checks


def _is_of_bundle(found: EngineSet, manifest: Manifest) -> bool:
    graphs = {name: manifest.files[graph.file].sha256 for name, graph in manifest.graphs.items()}
    fits = all(graphs.get(name) == sha256 for name, sha256 in found.graph_sha256.items())
    return fits and found.weights_sha256 in ({}, record_weights(manifest))


def describe_engine_set(check: EngineSetCheck) -> dict[str, Any]:
    """One set for a script."""
    found = check.engine_set
    return {
        "key": check.key,
        "ok": not check.is_bad,
        "problem": check.problem,
        "command": found.command if found else None,
        "file_states": {file.name: file.state for file in check.files},
    }
