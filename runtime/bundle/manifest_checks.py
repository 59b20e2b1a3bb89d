"""Check of a manifest what types cannot express: positive sizes, safe names, matching counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from ..errors import BundleError
from .generation_defaults import check_defaults
from .manifest import MANIFEST_NAME, Manifest, TensorSpec

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Names that reach scripts, options of other programs and file systems of any kind: plain ones.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_GRAPH_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
TENSOR_NAME = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]{0,199}")
_DIMENSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .*+/-]{0,99}")  # "batch * sequence"
_TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_TENSORRT = re.compile(r"(RTX )?[0-9]{1,4}(\.[0-9]{1,5}){1,3}")
# Names that transformers gives to chat templates; a tokenizer may have more of its own
TEMPLATE_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
# What a prompt is rendered with, and so no token's name
TEMPLATE_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "add_vision_id")
_TEMPLATE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MAX_FILE_NAME = 200  # characters: file systems take 255 bytes, temporary names are longer


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
    try:
        check_defaults(manifest.generation, vocab_size)
    except ValueError as error:
        raise BundleError(f"generation.{error}") from error
    pixels = manifest.pixels
    if not 0 < pixels.min_pixels <= pixels.max_pixels:
        raise BundleError(
            f"pixel budget {pixels.min_pixels}..{pixels.max_pixels} is empty or not positive"
        )
    low, high = pixels.frame_limits
    if not 0 < low <= high:
        raise BundleError(f"pixel budget of clips {low}..{high} is empty or not positive")
    if not all(std > 0 for std in pixels.image_std):
        raise BundleError(f"image_std {pixels.image_std} must be positive")
    if wrong := [name for name in manifest.special_tokens if not is_template_name(name)]:
        raise BundleError(
            f"special_tokens has {wrong[0]!a:.80}, needed a word of letters, digits and _, "
            f"none of {', '.join(TEMPLATE_VARIABLES)}"
        )
    if (manifest.flavor == "tensorrt") != (manifest.target is not None):
        raise BundleError(f"a bundle of flavor {manifest.flavor} has target {manifest.target}")
    if manifest.embedding.shape != (manifest.decoder.vocab_size, manifest.decoder.hidden_size):
        raise BundleError(
            f"embedding table is {manifest.embedding.shape}, the decoder needs "
            f"{(manifest.decoder.vocab_size, manifest.decoder.hidden_size)}"
        )
    for name, sha256 in manifest.source.sha256.items():
        if not _SHA256.fullmatch(sha256):
            raise BundleError(f"source.sha256 of {name} is {sha256!a:.80}: no SHA-256")
    _check_target(manifest)
    _check_graphs(manifest)
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
            raise BundleError(f"file name {name!a:.200} leaves the bundle")
        check_file_name(name)
        if not _SHA256.fullmatch(record.sha256) or not 0 <= record.bytes < 2**63:
            raise BundleError(f"record of {name} has a malformed hash or size")


def is_template_name(name: str) -> bool:
    """Whether a special token may have this name in chat templates."""
    return _TEMPLATE_NAME.fullmatch(name) is not None and name not in TEMPLATE_VARIABLES


def check_file_name(name: str) -> None:
    """See that a file of a bundle has a name that no program reads as anything else.

    Raises:
        BundleError: it hasn't; says what it may be.
    """
    if len(name) > _MAX_FILE_NAME or not _FILE_NAME.fullmatch(name) or name == MANIFEST_NAME:
        raise BundleError(
            f"file name {name!a:.200} can't be a bundle's: needed letters, digits and . _ - only, "
            f"none that begins with . or -, of at most {_MAX_FILE_NAME} characters"
        )


def _check_target(manifest: Manifest) -> None:
    target = manifest.target
    if target is None:
        return
    if not _TARGET_NAME.fullmatch(target.name):
        raise BundleError(
            f"target.name is {target.name!a:.80}, needed a name of lowercase letters, digits, "
            "points and dashes, as in jetpack-6.2"
        )
    if not _TENSORRT.fullmatch(target.tensorrt):
        raise BundleError(
            f"target.tensorrt is {target.tensorrt!a:.80}, needed a version, as in 10.3 or RTX 1.5"
        )
    if target.capacity is not None and not 0 < target.capacity < 2**31:
        raise BundleError(f"target.capacity is {target.capacity}: not a number of tokens")


def _check_graphs(manifest: Manifest) -> None:
    for name, graph in manifest.graphs.items():
        if not _GRAPH_NAME.fullmatch(name):
            raise BundleError(
                f"a graph is called {name!a:.80}, needed lowercase letters, digits and _"
            )
        check_tensors((*graph.inputs, *graph.outputs), f"graphs.{name}")


def check_tensors(tensors: Iterable[TensorSpec], where: str) -> None:
    """See that tensors and dimensions have names that options of other programs can hold.

    Raises:
        BundleError: names the one that hasn't.
    """
    for tensor in tensors:
        if not TENSOR_NAME.fullmatch(tensor.name):
            raise BundleError(
                f"{where} has a tensor called {tensor.name!a:.80}, needed letters, digits and "
                "_ . / - only"
            )
        for size in tensor.shape:
            is_name = isinstance(size, str)
            if not (_DIMENSION.fullmatch(size) if is_name else 0 <= size < 2**31):
                raise BundleError(
                    f"{where}: {tensor.name} has a dimension {size!a:.80}, needed a size or a name"
                )


def _check_coverage(manifest: Manifest) -> None:
    seen: set[tuple[str | None, str]] = set()
    for entry in manifest.coverage:
        if not entry.name.strip() or not entry.precision.strip():
            raise BundleError(
                f"coverage has an entry {entry.name!a:.80} of precision {entry.precision!a:.80}, "
                "needed both"
            )
        if entry.graph is not None and entry.graph not in manifest.graphs:
            raise BundleError(f"coverage of {entry.name} is in {entry.graph}: no such graph")
        if (entry.graph, entry.name) in seen:
            raise BundleError(f"coverage names {entry.name} of {entry.graph} twice")
        seen.add((entry.graph, entry.name))
    record = manifest.quantization
    if record and record.data_sha256 is not None and not _SHA256.fullmatch(record.data_sha256):
        raise BundleError("quantization.data_sha256 is no SHA-256")
