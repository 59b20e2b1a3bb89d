"""A TOML file -> the frozen recipe by which a bundle is quantized; presets come with the package.

    name = "orin"
    [vision]                      # the ViT and the merger
    format = "int8"               # static W8A8
    [decoder]
    format = "int4-weight"
    block_size = 128
    [lm_head]
    format = "int8-weight"
    [embedding]
    format = "lm_head"            # the table is the head's own matrix
    [[layers]]                    # exceptions, the last that fits counts
    pattern = "visual.merger.*"
    format = "int8-weight"
    reason = "decides every visual token"

Every table and key may be left out; an unknown one is an error.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import tomllib

from ...runtime.files.plain_text import check_plain
from ...runtime.files.regular_file import read_regular_text
from ...runtime.files.strict import read_strict
from ..rounding.ranges import RangeMethod
from .checks import BITS, check_linear, check_shared
from .preset_names import PACKAGE, find_recipe
from .preset_names import list_presets as list_presets

Format = Literal["float", "int8", "int8-dynamic", "fp8", "int8-weight", "int4-weight"]
Method = Literal["nearest", "awq", "gptq", "awq+gptq"]
Smooth = Literal["off", "search"]
Shift = Literal["off", "search"]
TableFormat = Literal["float", "int8", "fp8", "lm_head"]
CacheFormat = Literal["float", "int8-tensor", "int8-channel"]
AttentionFormat = Literal["float", "fp8"]
BlockScales = Literal["signed", "positive"]
Layout = Literal["onnxruntime", "qdq"]

WEIGHT_ONLY: dict[str, int] = BITS  # format -> bits
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
MAX_RECIPE_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # what TOML strings may not hold


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


def open_recipe(name: str | Path) -> Recipe:
    """A preset by its name, or a TOML file.

    Raises:
        ValueError: neither exists, or the file is no recipe (it says what is wrong with it).
    """
    path = find_recipe(name)
    if path is None:
        text = (files(PACKAGE) / "presets" / f"{name}.toml").read_text("utf-8")
        return parse_recipe(text, str(name))
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ValueError(f"{path} has over {MAX_RECIPE_BYTES} bytes: this is no recipe")
    try:
        return parse_recipe(read_regular_text(path), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe's TOML, strictly.

    Raises:
        ValueError: names `where`, the key, what was got and what was needed.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise ValueError(f"{where} is not TOML: {error}") from error
    try:
        # Names and reasons go into manifests
        check_plain(raw, where, long_texts=(f"{where}.description",))
        return read_strict(raw, Recipe, where, ValueError)
    except ValueError as error:  # keys can hold a line's end
        raise ValueError(" ".join(str(error).split())) from error


def format_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `parse_recipe` reads back; defaults are left out."""
    lines = [f"name = {_quote(recipe.name)}"]
    if recipe.description:
        lines.append(f"description = {_quote(recipe.description)}")
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value) and (rows := _list_changes(value)):
            lines += ["", f"[{field.name}]", *rows]
    for layer in recipe.layers:
        lines += ["", "[[layers]]", *_list_changes(layer)]
    return "\n".join(lines) + "\n"


def _list_changes(value: Any) -> list[str]:
    rows = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item != field.default:
            rows.append(f"{field.name} = {_quote(item) if isinstance(item, str) else item}")
    return rows


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'


assert set(NEXT_HIGHER) | {"float"} == set(get_args(Format))
