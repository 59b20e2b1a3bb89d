"""Compare a bundle's hashes before it is measured or made into another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...runtime.bundle.hash_check import HashCheck, check_hashes
from ...runtime.bundle.manifest import Manifest

# (amount done, of how much, what is done now)
Progress = Callable[[int, int, str], None]


def verify_bundle(folder: Path, manifest: Manifest, progress: Progress | None = None) -> HashCheck:
    """Compare every file of a bundle with its manifest.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        progress: told in MiB.

    Returns:
        What can be asked at the end whether the files still are those that were compared.

    Raises:
        BundleError: a file is another than the manifest says.
        OSError: a file can't be read.
    """
    if progress is None:
        return check_hashes(folder, manifest)
    name = folder.absolute().name

    def tell(done: int, total: int) -> None:
        progress(done >> 20, max(1, total >> 20), f"comparing the hashes of {name}")

    return check_hashes(folder, manifest, tell)
