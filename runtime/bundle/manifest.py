"""The manifest of a bundle: the frozen contract between exporter and runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .embedding_table import EmbeddingTable
from .generation_defaults import GenerationDefaults

MANIFEST_NAME = "manifest.json"

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
