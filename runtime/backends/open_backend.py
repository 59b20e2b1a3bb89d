"""Choose and open the backend that runs a bundle's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bundle.guard import BundleGuard
from ..bundle.manifest import Manifest
from ..errors import BackendError
from .backend import Backend, Residency

TENSORRT = "tensorrt"


def open_backend(
    folder: Path,
    manifest: Manifest,
    *,
    providers: Sequence[str] | str | None,
    num_threads: int | None,
    residency: Residency,
    guard: BundleGuard | None = None,
) -> Backend:
    """Engines for a bundle of flavor "tensorrt", ONNX Runtime for all else.

    Raises:
        BackendError: what was asked for is not installed, or doesn't go with the bundle.
        BundleError: all engine sets are damaged.
    """
    names = [providers] if isinstance(providers, str) else list(providers or ())
    asks_for_engines = TENSORRT in [name.lower() for name in names]
    if asks_for_engines and manifest.target is None:
        raise BackendError(
            "the bundle's graphs are for ONNX Runtime: vlmedge export BUNDLE OUT --target ... and "
            "vlmedge build OUT make engines of it"
        )
    if asks_for_engines and len(names) > 1:
        raise BackendError("tensorrt is asked for alone: engines fall back to nothing")
    if asks_for_engines or (manifest.target is not None and not names):
        from .trt.backend import open_engines

        return open_engines(folder, manifest, residency=residency, guard=guard)
    from .ort.backend import OrtBackend

    return OrtBackend(
        folder,
        manifest,
        providers=providers,
        num_threads=num_threads,
        residency=residency,
        guard=guard,
    )
