"""manifest.json of a bundle <-> the frozen contract between exporter and runtime."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import BundleError
from ..files.path_kind import explain_no_bundle
from ..files.plain_text import check_plain
from ..files.regular_file import name_other_kind, open_regular
from ..files.strict import parse_object, read_strict
from .embedding_table import EmbeddingTable
from .generation_defaults import GenerationDefaults
from .manifest_checks import check_manifest
from .manifest_seal import CHECKSUM, check_seal, seal_manifest

SCHEMA_VERSION = 3  # what is written
UNSEALED_VERSION = 2  # what is read as well: the same without a checksum
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20  # a 72B manifest with every weight's precision is under 1 MiB
# The texts of many lines; an answer may stop at an empty line
_LONG_TEXTS = (
    f"{MANIFEST_NAME}.quantization.recipe_toml",
    f"{MANIFEST_NAME}.generation.stop_strings",
)

CoverageKind = Literal["linear", "attention", "table", "kv_cache"]
MropeRule = Literal["paper", "transformers>=5.3"]
Flavor = Literal["onnxruntime", "tensorrt"]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
# How a decoder call adds to the cache: "in_place" writes it at write_indices, "append" gives back
# the new rows alone, and the host's side puts them in their places.
CacheMode = Literal["in_place", "append"]
Dtype = Literal[
    "float32", "float16", "bfloat16", "uint8", "int8", "int32", "int64", "bool", "float8_e4m3fn"
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output; a dimension is a size or the name of a dynamic one."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file and everything a host needs to bind it."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    keep_qdq: bool = False  # run QuantizeLinear and DequantizeLinear as they stand, fuse none


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """Constants of the ViT that the host needs."""

    depth: int
    embed_dim: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Constants of the decoder that the host needs."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids the host places or looks for; `eos` holds every id that ends an answer."""

    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    eos: tuple[int, ...]
    pad: int

    def __post_init__(self) -> None:
        if not self.eos:
            raise ValueError("eos is empty, needed at least one token id: no answer would end")


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """Limits of one picture after resizing, in pixels, and how its levels are normalized.

    Attributes:
        image_mean, image_std: of levels from 0 to 1.
        resample: Pillow's filter for resizing.
        clip_min_pixels, clip_max_pixels: limits of a frame of a clip; None: those of a picture.
    """

    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resample: Resample = "bicubic"
    clip_min_pixels: int | None = None
    clip_max_pixels: int | None = None

    @property
    def frame_limits(self) -> tuple[int, int]:
        """Least and most pixels of a frame of a clip."""
        low, high = self.clip_min_pixels, self.clip_max_pixels
        return self.min_pixels if low is None else low, self.max_pixels if high is None else high


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint a bundle was made from."""

    name: str  # hub id or folder name, never an absolute path
    sha256: dict[str, str]  # of config.json and every weight file


@dataclass(frozen=True, slots=True)
class CoverageEntry:
    """What one part of the model is computed in, and why.

    Attributes:
        name: a linear by its checkpoint layers ("model.layers.0.mlp.gate_proj+up_proj"), the two
            products of an attention ("...self_attn.products"), its cache ("...self_attn.cache"), or
            the table ("model.embed_tokens").
        graph: which of the manifest's graphs; None: the host reads it.
        precision: "float32", "int8 static", "int4 block 64", ...
        reason: "weights option", "recipe", the pattern or the fallback that decided.
    """

    name: str
    kind: CoverageKind
    graph: str | None
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """What a bundle was quantized by, enough to do it again."""

    recipe: str  # its name
    recipe_toml: str  # its text
    data: str | None  # of calibration; None: the recipe needs none
    data_sha256: str | None
    versions: dict[str, str]  # tool -> version


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """The TensorRT that graphs of flavor "tensorrt" were written for.

    Attributes:
        name: "jetpack-6.2", "tensorrt-11", ...
        tensorrt: the oldest version that reads them, "10.3".
        dtype: what is computed in, and the cache's type.
        capacity: tokens of the cache where the graph fixes them, None where they are dynamic.
    """

    name: str
    tensorrt: str
    dtype: Literal["float32", "float16", "bfloat16"]
    cache: CacheMode
    capacity: int | None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything the runtime may rely on; what is not in here, it must not guess."""

    schema_version: int
    created_by: str  # "vlmedge 0.1.0"
    family: Literal["qwen2_vl"]
    flavor: Flavor
    source: Source
    vision: VisionSpec
    decoder: DecoderSpec
    tokens: TokenIds
    pixels: PixelBudget
    generation: GenerationDefaults
    mrope_rule: MropeRule
    embedding: EmbeddingTable
    tokenizer_file: str
    chat_template_file: str
    graphs: dict[str, GraphSpec]  # "vision", "vision_video", "decoder"
    precision: dict[str, str]  # checkpoint tensor -> "float32", "int4 block 64", ...
    coverage: tuple[CoverageEntry, ...]  # every linear, attention, table and cache
    quantization: QuantizationRecord | None  # None: as the export wrote it
    files: dict[str, FileRecord]  # every file of the bundle but this manifest
    target: TargetRecord | None = None  # of flavor "tensorrt"
    # Names that chat templates see, "eos_token" -> "<|im_end|>"; of older bundles none
    special_tokens: dict[str, str] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """The most tokens of a sequence: the model's positions, or the graph's own cache."""
        positions = self.decoder.max_position_embeddings
        capacity = self.target.capacity if self.target else None
        return positions if capacity is None else min(positions, capacity)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON with its checksum and a final newline, of today's schema."""
    return seal_manifest(dataclasses.asdict(manifest) | {"schema_version": SCHEMA_VERSION})


def parse_manifest(text: str, *, check_checksum: bool = True) -> Manifest:
    """Read a manifest's JSON, strictly: unknown, missing and wrongly typed keys are errors.

    Args:
        text: of the file.
        check_checksum: without it a checksum may be wrong or missing, as after an edit by hand.

    Raises:
        BundleError: names the offending key, what was got and what was needed.
    """
    raw = parse_object(text, MANIFEST_NAME, BundleError)
    version = raw.get("schema_version")
    if version not in (SCHEMA_VERSION, UNSEALED_VERSION):
        raise BundleError(
            f"bundle has schema version {version!r:.80}, this runtime reads {UNSEALED_VERSION} and "
            f"{SCHEMA_VERSION}: export it again with this version of vlmedge"
        )
    if version == SCHEMA_VERSION:
        if check_checksum:
            check_seal(text, MANIFEST_NAME)
        raw.pop(CHECKSUM, None)
    check_plain(raw, MANIFEST_NAME, BundleError, long_texts=_LONG_TEXTS)
    manifest = read_strict(raw, Manifest, MANIFEST_NAME, BundleError)
    check_manifest(manifest)
    return manifest


def read_manifest(bundle: str | Path, *, check_files: bool = True) -> Manifest:
    """Read and check BUNDLE/manifest.json and that every file it lists is there in full size.

    Hashes of files are not computed here (that reads gigabytes): `vlmedge inspect` does. It also
    asks for `check_files=False`, to tell of all files rather than stop at the first that is wrong.

    Raises:
        BundleError: no such folder, no manifest, a damaged one, or a missing or truncated file.
    """
    folder = Path(bundle)
    manifest = parse_manifest(read_manifest_text(folder))
    for name, record in manifest.files.items() if check_files else ():
        file_path = folder / name
        if not file_path.exists():
            raise BundleError(f"bundle {folder} lacks the file {name}")
        if kind := name_other_kind(file_path):
            raise BundleError(f"{file_path}: it is {kind}, a regular file is needed")
        size = file_path.stat().st_size
        if size != record.bytes:
            raise BundleError(f"{file_path} has {size} bytes, the manifest says {record.bytes}")
    return manifest


def reseal_manifest(bundle: str | Path) -> None:
    """Write BUNDLE/manifest.json with a checksum of what it says now, after an edit by hand.

    One of the older schema gets its first. What else `parse_manifest` refuses stays refused.

    Raises:
        BundleError: it is no manifest, or a wrong one.
        OSError: it can't be written; the old one is still there.
    """
    folder = Path(bundle)
    text = to_json(parse_manifest(read_manifest_text(folder), check_checksum=False))
    temporary = folder / f".{MANIFEST_NAME}.partial-{os.getpid()}"
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest_text(folder: Path) -> str:
    """The text of BUNDLE/manifest.json, not yet parsed.

    Raises:
        BundleError: no such folder, no manifest, or one that is no text or too large.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise BundleError(explain_no_bundle(folder))
    try:
        with open_regular(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        reason = f"no readable {MANIFEST_NAME} ({error.strerror})"
        raise BundleError(f"{folder} is not a bundle: {reason}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is over {MAX_MANIFEST_BYTES} bytes: not a vlmedge manifest")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8: {error}") from error
