"""The frozen recipe by which a bundle is quantized, checked where it is made.

`toml.py` reads it from a file, and shows what a file looks like.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from ..rounding.ranges import RangeMethod
from ..rounding.weight_only import BLOCK_SIZES

Format = Literal["float", "int8", "int8-dynamic", "fp8", "int8-weight", "int4-weight"]
Method = Literal["nearest", "awq", "gptq", "awq+gptq"]
Smooth = Literal["off", "search"]
Shift = Literal["off", "search"]
TableFormat = Literal["float", "int8", "fp8", "lm_head"]
CacheFormat = Literal["float", "int8-tensor", "int8-channel"]
AttentionFormat = Literal["float", "fp8"]
BlockScales = Literal["signed", "positive"]
Layout = Literal["onnxruntime", "qdq"]

WEIGHT_ONLY = {"int8-weight": 8, "int4-weight": 4}  # format -> bits
STATIC = ("int8", "fp8")  # formats whose activations have a scale found by calibration
DEFAULT_BLOCK_SIZE = 64
# What a layer is given back to when its format does too much damage, one step at a time.
NEXT_HIGHER: dict[Format, Format] = {
    "int4-weight": "int8-weight",
    "int8": "int8-weight",
    "int8-dynamic": "int8-weight",
    "fp8": "float",
    "int8-weight": "float",
}
TENSORRT_BLOCK_SIZES = (64, 128)  # of int4 weights; ONNX Runtime takes 16 to 256


@dataclass(frozen=True, slots=True)
class LinearRecipe:
    """How linear layers are quantized.

    Attributes:
        format: what weights and activations become.
        method: how weights are rounded: to nearest; awq scales channels of weight-only formats by
            their activations; gptq rounds against the inputs' second moments; awq+gptq does both.
        block_size: weights that share a scale in the weight-only formats.
        layout: weight-only matrices as ONNX Runtime's MatMulNBits or as standard DequantizeLinear,
            which TensorRT reads.
        ranges: how the activations' range is found for int8 and fp8.
        percentile: of |activation| that is kept by the method of that name.
        smooth: migration of activation outliers into the weights (SmoothQuant) for int8 and fp8:
            "off", a strength from 0 to 1, or the best strength for each layer.
        shift: centring of the activations' channels for int8: "off", or where it helps. What is
            subtracted comes back in the layer's bias.
        block_scales: scales of the weight-only formats with the sign that rounds best, or above 0
            only, as TensorRT needs them; the layout qdq has positive ones in any case.
    """

    format: Format = "float"
    method: Method = "nearest"
    block_size: int = DEFAULT_BLOCK_SIZE
    layout: Layout = "onnxruntime"
    ranges: RangeMethod = "mse"
    percentile: float = 99.99
    smooth: Smooth | float = "search"
    shift: Shift = "search"
    block_scales: BlockScales = "signed"

    @property
    def has_positive_scales(self) -> bool:
        """Whether the weight-only formats may have scales above 0 only."""
        return self.block_scales == "positive" or self.layout == "qdq"


@dataclass(frozen=True, slots=True)
class LayerException:
    """Layers that are quantized otherwise.

    Attributes:
        pattern: of layer names, with * and ?; one that fits nothing is an error.
        format: instead of the part's.
        reason: recorded in the manifest.
        method, block_size: None: the part's.
    """

    pattern: str
    format: Format
    reason: str = "pattern"
    method: Method | None = None
    block_size: int | None = None


@dataclass(frozen=True, slots=True)
class TableRecipe:
    """The embedding table; "lm_head" reads its rows out of the head's weight-only matrix."""

    format: TableFormat = "float"


@dataclass(frozen=True, slots=True)
class CacheRecipe:
    """The KV cache: float, or int8 with one scale a layer or one a channel."""

    format: CacheFormat = "float"


@dataclass(frozen=True, slots=True)
class AttentionRecipe:
    """The products of attention; fp8 puts Q/DQ on queries, keys, values and the softmax."""

    vision: AttentionFormat = "float"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a bundle is quantized; checked where it is made."""

    name: str
    description: str = ""
    vision: LinearRecipe = LinearRecipe()
    decoder: LinearRecipe = LinearRecipe()
    lm_head: LinearRecipe = LinearRecipe()
    embedding: TableRecipe = TableRecipe()
    kv_cache: CacheRecipe = CacheRecipe()
    attention: AttentionRecipe = AttentionRecipe()
    layers: tuple[LayerException, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or "/" in self.name:
            raise ValueError(f"recipe has the name {self.name!r}, needed a printable word")
        for part in ("vision", "decoder", "lm_head"):
            check_linear(getattr(self, part), f"recipe {self.name}: {part}")
        for i, layer in enumerate(self.layers):
            where = f"recipe {self.name}: layers[{i}]"
            if not layer.pattern:
                raise ValueError(f"{where} has no pattern")
            check_linear(merge_exception(LinearRecipe(), layer), where)
        if self.embedding.format == "lm_head":
            check_shared(self.lm_head, f"recipe {self.name}")

    @property
    def needs_data(self) -> bool:
        """Whether activations have to be seen: static scales, or a calibrated rounding."""
        parts = (self.vision, self.decoder, self.lm_head)
        merged = (merge_exception(part, layer) for layer in self.layers for part in parts)
        used = [recipe for recipe in (*parts, *merged) if recipe.format != "float"]
        linear = any(recipe.format in STATIC or recipe.method != "nearest" for recipe in used)
        return linear or self.kv_cache.format != "float" or self.attention.vision != "float"

    @property
    def needs_pictures(self) -> bool:
        """Whether it is the ViT's activations that have to be seen; exceptions apart."""
        vision = self.vision
        is_seen = vision.format in STATIC or vision.method != "nearest"
        return (is_seen and vision.format != "float") or self.attention.vision != "float"


def merge_exception(part: LinearRecipe, layer: LayerException) -> LinearRecipe:
    """A part's recipe with what an exception changes."""
    return dataclasses.replace(
        part,
        format=layer.format,
        method=part.method if layer.method is None else layer.method,
        block_size=part.block_size if layer.block_size is None else layer.block_size,
    )


def scales_channels(method: Method) -> bool:
    """Whether a method scales input channels by their activations first."""
    return method in ("awq", "awq+gptq")


def uses_moments(method: Method) -> bool:
    """Whether a method rounds against the inputs' second moments."""
    return method in ("gptq", "awq+gptq")


def check_shared(head: LinearRecipe, where: str) -> None:
    """Refuse a head whose matrix is no table of embeddings.

    Raises:
        ValueError: says what is in the way.
    """
    if head.format not in WEIGHT_ONLY:
        reason = f"only where that is int8-weight or int4-weight, it is {head.format}"
    elif head.layout != "onnxruntime":
        reason = f"only in the layout onnxruntime, it is {head.layout}"
    elif "awq" in head.method:
        reason = "but awq scales its columns: use nearest or gptq"
    else:
        return
    raise ValueError(f"{where}: the embedding table can be the lm_head's matrix, {reason}")


def check_linear(recipe: LinearRecipe, where: str) -> None:
    """Refuse what doesn't go together.

    Raises:
        ValueError: `where`, what was got and what to do.
    """
    bits = WEIGHT_ONLY.get(recipe.format)
    if recipe.block_size not in BLOCK_SIZES:
        raise ValueError(f"{where}: block_size is {recipe.block_size}, needed one of {BLOCK_SIZES}")
    if recipe.layout == "qdq" and bits == 4 and recipe.block_size not in TENSORRT_BLOCK_SIZES:
        raise ValueError(
            f"{where}: TensorRT takes int4 blocks of {TENSORRT_BLOCK_SIZES}, got "
            f"{recipe.block_size}: change it, or use layout onnxruntime"
        )
    if "awq" in recipe.method and bits is None and recipe.format != "float":
        raise ValueError(f"{where}: awq is for int8-weight and int4-weight, got {recipe.format}")
    if "gptq" in recipe.method and recipe.format in ("fp8", "int8-dynamic"):
        raise ValueError(f"{where}: gptq is for int8 and weight-only formats, got {recipe.format}")
    if not 50 < recipe.percentile <= 100:
        raise ValueError(f"{where}: percentile is {recipe.percentile}, needed 50 to 100")
    if isinstance(recipe.smooth, float) and not 0 <= recipe.smooth <= 1:
        raise ValueError(f"{where}: smooth is {recipe.smooth}, needed 0 to 1, off or search")


assert set(NEXT_HIGHER) | {"float"} == set(get_args(Format))
