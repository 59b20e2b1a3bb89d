"""The formats that an export stores weights in, by name."""

from __future__ import annotations

from typing import Literal

WeightFormat = Literal["fp32", "fp16", "int8", "int4"]
# Weights that share a scale. Longer blocks are faster everywhere (int8 in blocks of 128 instead of
# 64: prefill and ViT by a quarter, decoding by 5 %). At 8 bits they cost next to no accuracy (an
# error of 0.6 % a weight becomes 0.65 %), at 4 bits they do (9.5 % becomes 10.5 %).
DEFAULT_BLOCK_SIZES = {"int8": 128, "int4": 64}
