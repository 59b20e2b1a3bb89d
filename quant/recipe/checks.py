"""What doesn't go together in a recipe, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rounding.weight_only import BLOCK_SIZES

if TYPE_CHECKING:
    from .recipe import LinearRecipe

BITS = {"int8-weight": 8, "int4-weight": 4}  # of the weight-only formats
TENSORRT_BLOCK_SIZES = (64, 128)  # of int4 weights; ONNX Runtime takes 16 to 256


def check_shared(head: LinearRecipe, where: str) -> None:
    """Refuse a head whose matrix is no table of embeddings.

    Raises:
        ValueError: says what is in the way.
    """
    if head.format not in BITS:
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
    bits = BITS.get(recipe.format)
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
