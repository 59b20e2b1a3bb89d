"""What types alone don't say of a manifest: positive sizes, safe file names, matching counts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .errors import BundleError

if TYPE_CHECKING:
    from .manifest import Manifest

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_manifest(manifest: Manifest) -> None:
    """See that a manifest of the right types makes sense.

    Raises:
        BundleError: names what doesn't, and its value.
    """
    for part in (manifest.vision, manifest.decoder):
        for field in dataclasses.fields(part):
            size = getattr(part, field.name)
            if not 0 < size < 2**31:
                raise BundleError(f"{type(part).__name__}.{field.name} is {size}: not a size")
    vocab_size = manifest.decoder.vocab_size
    if bad := [token for token in manifest.tokens.eos if not 0 <= token < vocab_size]:
        raise BundleError(f"tokens.eos holds {bad[0]}: not one of the {vocab_size} token ids")
    pixels = manifest.pixels
    if not 0 < pixels.min_pixels <= pixels.max_pixels:
        raise BundleError(
            f"pixel budget {pixels.min_pixels}..{pixels.max_pixels} is empty or not positive"
        )
    if not all(std > 0 for std in pixels.image_std):
        raise BundleError(f"image_std {pixels.image_std} must be positive")
    if (manifest.flavor == "tensorrt") != (manifest.target is not None):
        raise BundleError(f"a bundle of flavor {manifest.flavor} has target {manifest.target}")
    if manifest.embedding.shape != (manifest.decoder.vocab_size, manifest.decoder.hidden_size):
        raise BundleError(
            f"embedding table is {manifest.embedding.shape}, the decoder needs "
            f"{(manifest.decoder.vocab_size, manifest.decoder.hidden_size)}"
        )
    for graph in ("vision", "decoder"):
        if graph not in manifest.graphs:
            raise BundleError(f"manifest has no {graph} graph")
    _check_coverage(manifest)
    named = [*manifest.embedding.files, manifest.tokenizer_file, manifest.chat_template_file]
    named += [graph.file for graph in manifest.graphs.values()]
    for name in named:
        if name not in manifest.files:
            raise BundleError(f"manifest names the file {name} but has no record of it")
    for name, record in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not name:
            raise BundleError(f"file name {name!r} leaves the bundle")
        if not _SHA256.fullmatch(record.sha256) or record.bytes < 0:
            raise BundleError(f"record of {name} has a malformed hash or size")


def _check_coverage(manifest: Manifest) -> None:
    seen: set[tuple[str | None, str]] = set()
    for entry in manifest.coverage:
        if entry.graph is not None and entry.graph not in manifest.graphs:
            raise BundleError(f"coverage of {entry.name} is in {entry.graph}: no such graph")
        if (entry.graph, entry.name) in seen:
            raise BundleError(f"coverage names {entry.name} of {entry.graph} twice")
        seen.add((entry.graph, entry.name))
    record = manifest.quantization
    if record and record.data_sha256 is not None and not _SHA256.fullmatch(record.data_sha256):
        raise BundleError("quantization.data_sha256 is no SHA-256")
