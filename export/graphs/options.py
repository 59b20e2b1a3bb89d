"""The options of an export: how a bundle's weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ...quant.rounding.weight_only import BLOCK_SIZES
from .layers import Precision
from .weight_format import DEFAULT_BLOCK_SIZES, WeightFormat

# What the other parts default to when only the decoder's format is given. The ViT and the lm_head
# run once a picture and once a token: coarse ones cost every answer, and int4 saves them little.
VISION_DEFAULT: dict[WeightFormat, WeightFormat] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int4": "int8",
}
LM_HEAD_DEFAULT = VISION_DEFAULT


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Weight formats of the three parts; None follows the decoder's by the tables above."""

    weights: WeightFormat = "fp32"
    vision_weights: WeightFormat | None = None
    lm_head_weights: WeightFormat | None = None
    block_size: int | None = None  # of int8 and int4; None: DEFAULT_BLOCK_SIZES
    requantize: bool = False  # take layers that the checkpoint has packed as floats

    def __post_init__(self) -> None:
        for name in ("weights", "vision_weights", "lm_head_weights"):
            value = getattr(self, name)
            if value not in get_args(WeightFormat) and (value is not None or name == "weights"):
                formats = ", ".join(get_args(WeightFormat))
                raise ValueError(f"{name} is {value!r}, needed one of {formats}")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size is {self.block_size}, needed one of {BLOCK_SIZES}")

    @property
    def decoder(self) -> Precision:
        """Of the decoder's layers."""
        return self._precision(self.weights)

    @property
    def vision(self) -> Precision:
        """Of the ViT and the merger."""
        return self._precision(self.vision_weights or VISION_DEFAULT[self.weights])

    @property
    def lm_head(self) -> Precision:
        """Of the last matrix product."""
        return self._precision(self.lm_head_weights or LM_HEAD_DEFAULT[self.weights])

    def _precision(self, format: WeightFormat) -> Precision:
        block_size = self.block_size or DEFAULT_BLOCK_SIZES.get(format)
        return Precision(format) if block_size is None else Precision(format, block_size)
