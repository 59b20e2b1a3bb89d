"""The precisions that are compared and timed: a recipe and a compute type each.

All weights are rounded to nearest and ranges are minmax: what calibrated rounding gains in accuracy
costs minutes and does not show in speed; engines and reference run the same graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MatrixType = Literal["fp16", "bf16", "int8", "fp8"]

_HEAD = """
[lm_head]
format = "int8-weight"
block_size = 128
block_scales = "positive"
"""
_INT8_VISION = """
[vision]
format = "int8"
ranges = "minmax"
smooth = "off"
shift = "off"
"""
_INT8 = f"""name = "gpu-int8"
description = "INT8 activations and weights in ViT and decoder"
{_INT8_VISION}
[decoder]
format = "int8"
ranges = "minmax"
smooth = "off"
shift = "off"
{_HEAD}"""
_INT4 = f"""name = "gpu-int4"
description = "The preset orin in nearest rounding: INT8 ViT, INT4 weights in the decoder"
{_INT8_VISION}
[decoder]
format = "int4-weight"
block_size = 64
block_scales = "positive"
{_HEAD}"""
_FP8 = f"""name = "gpu-fp8"
description = "The preset thor: FP8 in ViT and decoder"

[vision]
format = "fp8"
ranges = "minmax"
smooth = "off"

[decoder]
format = "fp8"
ranges = "minmax"
smooth = "off"
{_HEAD}"""


@dataclass(frozen=True, slots=True)
class Precision:
    """One of them.

    Attributes:
        recipe: TOML; None: float.
        dtype: of vlmedge export --target.
        vision_math, decoder_math: what matrices are multiplied in: the ceiling that counts.
        reference: whose graphs ONNX Runtime runs to compare with: its CPU has no bfloat16.
        limit: of the relative L2 error of embeddings and logits against them.
        least_capability: of a GPU that can run it, (major, minor).
        is_timed: at full size; else it is only compared.
    """

    recipe: str | None
    dtype: Literal["fp16", "bf16"]
    vision_math: MatrixType
    decoder_math: MatrixType
    reference: str
    limit: float
    least_capability: tuple[int, int] = (8, 0)
    is_timed: bool = True


# Limits: rounding of the compute type, through a few layers; a step of 8 bits where an activation
# lies between two of its values and both sides choose another.
PRECISIONS = {
    "fp16": Precision(None, "fp16", "fp16", "fp16", "fp16", 0.01),
    "int4": Precision(_INT4, "fp16", "int8", "fp16", "int4", 0.05),
    "fp8": Precision(_FP8, "fp16", "fp8", "fp8", "fp8", 0.1, (8, 9)),
    "int8": Precision(_INT8, "fp16", "int8", "int8", "int8", 0.05),
    "bf16": Precision(None, "bf16", "bf16", "bf16", "fp16", 0.05, is_timed=False),
}
# What a dry run builds for: stands for an Orin, and for a Thor.
DRY_CAPABILITIES = ("8.6", "12.0")


def can_run(name: str, capability: str) -> bool:
    """Whether a GPU has arithmetic for a precision."""
    major, _, minor = capability.partition(".")
    return (int(major), int(minor)) >= PRECISIONS[name].least_capability
