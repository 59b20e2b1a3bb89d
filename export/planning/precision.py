"""Translate a manifest's precisions into bytes of weights, and what a product runs in.

"float32", "bfloat16", "int8 static", "float8_e4m3fn", "int4 block 64": the words of the manifest's
coverage. A recipe becomes such words by the quantizer's own rules.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .model_shapes import ModelShapes

if TYPE_CHECKING:
    from ...quant.recipe.recipe import Recipe
    from ..lowering.targets import Target

FloatName = Literal["float32", "float16", "bfloat16"]
Kind = Literal["float32", "float16", "bfloat16", "static", "dynamic", "fp8", "weights"]
CacheKind = Literal["float", "int8-tensor", "int8-channel"]
TableKind = Literal["float", "int8", "fp8", "lm_head"]

FLOAT_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT = "float"  # in place of a recipe: nothing is quantized
_WEIGHTS = re.compile(r"int(4|8) (?:block (\d+)|per row)")
_NAMES: dict[str, Kind] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8 static": "static",
    "int8 dynamic": "dynamic",
    "float8_e4m3fn": "fp8",
}


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """One linear layer's numbers.

    Attributes:
        kind: "static", "dynamic" and "fp8" have rounded inputs as well, "weights" has not.
        bits: of a weight.
        block_size: weights that share a scale; 0: a row of the matrix does.
    """

    kind: Kind
    bits: int
    block_size: int = 0

    @property
    def is_float(self) -> bool:
        """Whether the weights are floats of the compute type or another."""
        return self.kind in FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class ModelPrecision:
    """What every part of a model is stored and computed in.

    Attributes:
        name: of the recipe, or "float".
        layers: layer -> precision as manifests say it; a layer that is missing is float.
        cache: of keys and values.
        table: of the token embeddings.
        vision_attention: "float", or "fp8" for both products.
        may_shift: layers whose inputs the quantizer may centre: each stores one vector more.
    """

    name: str = FLOAT
    layers: Mapping[str, str] | None = None
    cache: CacheKind = "float"
    table: TableKind = "float"
    vision_attention: Literal["float", "fp8"] = "float"
    may_shift: frozenset[str] = frozenset()

    def of(self, layer: str, float_name: FloatName) -> LayerPrecision:
        """One layer's; `float_name` is what floats are."""
        return parse_precision((self.layers or {}).get(layer, float_name))

    @property
    def words(self) -> list[str]:
        """The precisions there are, each once."""
        return list(dict.fromkeys((self.layers or {}).values()))


def parse_precision(words: str) -> LayerPrecision:
    """Words of a manifest -> numbers.

    Raises:
        ValueError: words that no manifest of ours holds.
    """
    if match := _WEIGHTS.fullmatch(words):
        return LayerPrecision("weights", int(match[1]), int(match[2] or 0))
    if (kind := _NAMES.get(words)) is None:
        raise ValueError(
            f"precision is {words!r}, needed {', '.join(_NAMES)}, int4 block 64 or int8 per row"
        )
    return LayerPrecision(kind, 8 * FLOAT_BYTES.get(kind, 1))


def read_precision(
    recipe: str, shapes: ModelShapes, float_name: FloatName, *, tied: bool = True
) -> ModelPrecision:
    """A preset, a TOML file or "float" -> what becomes of every layer of a model.

    Recipes are read by the quantizer, which needs Python 3.11 and the packages of the extra
    `export`; a board that has neither plans a bundle as it is, or "float".

    Args:
        recipe: its name.
        shapes: of the model.
        float_name: what float layers are computed in.
        tied: whether the lm_head is the embedding table.

    Raises:
        ValueError: no such recipe, one that doesn't fit this model, or nothing to read it with.
    """
    if recipe == FLOAT:
        return ModelPrecision()
    try:
        from ...quant.recipe.toml import open_recipe
    except ImportError as error:
        raise _cannot_read(recipe, error) from error
    return plan_precision(open_recipe(recipe), shapes, float_name, tied=tied)


def list_recipes() -> list[str]:
    """Names of the presets that can be read here; none where no recipe can."""
    try:
        from ...quant.recipe.preset_names import list_presets
    except ImportError:
        return []
    return list_presets()


def plan_precision(
    recipe: Recipe, shapes: ModelShapes, float_name: FloatName, *, tied: bool = True
) -> ModelPrecision:
    """A recipe as the quantizer applies it: exceptions, fallbacks and all.

    Raises:
        ValueError: a pattern that fits no layer, or a rule that another rule forbids.
    """
    try:
        from ...quant.graph.linears import Linear
        from ...quant.quantize.linear_nodes import describe_precision
        from ...quant.quantize.plan import fit_table, make_plan
    except ImportError as error:
        raise _cannot_read(recipe.name, error) from error
    linears: dict[str, list[Linear]] = {"vision": [], "decoder": []}
    for m in shapes.matrices:
        bias = f"{m.name}.bias" if m.has_bias else None
        # The quantizer looks at names and sizes here; nodes and values are of no graph.
        linear = Linear(
            m.name, "", "", "", "", f"{m.name}.weight", bias, m.out_features, m.in_features
        )
        linears["vision" if m.part == "vision" else "decoder"].append(linear)
    recipe, _ = fit_table(recipe, is_tied=tied)
    plan = make_plan(recipe, linears)
    return ModelPrecision(
        recipe.name,
        {n: describe_precision(layer.recipe, float_name) for n, layer in plan.layers.items()},
        recipe.kv_cache.format,
        recipe.embedding.format,
        recipe.attention.vision,
        frozenset(
            name
            for name, layer in plan.layers.items()
            if layer.recipe.format == "int8"
            and layer.recipe.shift != "off"
            and layer.linear.bias is not None
        ),
    )


def lower_precision(
    precision: ModelPrecision, shapes: ModelShapes, target: Target, compute: FloatName
) -> ModelPrecision:
    """What an export for a TensorRT makes of it: floats of one type, blocks of allowed sizes.

    Raises:
        ValueError: something that no target's graph has.
    """
    if precision.cache != "float":
        raise ValueError(
            "the recipe keeps the KV cache as int8, which no target's graph does: "
            "quantize with kv_cache float"
        )
    layers = {}
    for matrix in shapes.matrices:
        how = precision.of(matrix.name, compute)
        words = (precision.layers or {}).get(matrix.name, compute)
        if how.is_float:
            words = compute
        elif how.kind == "weights" and how.block_size:
            words = _plan_blocks(how, matrix.in_features, target)
        layers[matrix.name] = words
    return dataclasses.replace(precision, layers=layers)


def _plan_blocks(how: LayerPrecision, row_size: int, target: Target) -> str:
    try:
        from ..lowering.blocks import plan_blocks
    except ImportError as error:
        raise _cannot_read(f"of {how.bits} bits", error) from error
    allowed = target.int4_blocks if how.bits == 4 else target.int8_blocks
    return plan_blocks(how.bits, how.block_size, row_size, False, allowed).precision


def read_coverage(coverage: Any, recipe: str) -> ModelPrecision:
    """The manifest's coverage of a bundle -> the same.

    Args:
        coverage: the manifest's entries.
        recipe: its name, "float" of a bundle that was not quantized.
    """
    layers = {entry.name: entry.precision for entry in coverage if entry.kind == "linear"}
    layers = {name: p for name, p in layers.items() if not name.startswith("visual.patch_embed")}
    caches = {entry.precision for entry in coverage if entry.kind == "kv_cache"}
    (table,) = [entry.precision for entry in coverage if entry.kind == "table"] or [""]
    attentions = {
        entry.precision
        for entry in coverage
        if entry.kind == "attention" and (entry.graph or "").startswith("vision")
    }
    cache: CacheKind = "float"
    if caches & {"int8 per tensor", "int8 per channel"}:
        cache = "int8-tensor" if "int8 per tensor" in caches else "int8-channel"
    return ModelPrecision(
        recipe,
        layers,
        cache,
        _read_table(table),
        "fp8" if "float8_e4m3fn" in attentions else "float",
    )


def _read_table(words: str) -> TableKind:
    if words.endswith(" rows"):
        return "int8" if words.startswith("int8") else "fp8"
    return "lm_head" if _WEIGHTS.fullmatch(words) else "float"


def _cannot_read(recipe: str, error: ImportError) -> ValueError:
    version = ".".join(map(str, sys.version_info[:2]))
    reason = f"this is Python {version}" if error.name == "tomllib" else f"{error.name} is missing"
    return ValueError(
        f"recipe {recipe} can't be read here ({reason}): recipes need Python 3.11 and "
        "pip install vlmedge[export]; plan on another machine, or a bundle as it is"
    )
