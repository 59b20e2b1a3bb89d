"""Limit how far a bundle may be from its checkpoint, by the precision of its weights.

Two measures, each where it says most:

* float weights: the largest difference, over the reference's root mean square where that is above
  1. Nothing was rounded, so every single value must agree; what remains is float32 arithmetic in
  another order (measured 1e-6 to 1e-5 over 2 to 28 layers).
* rounded weights: the L2 norm of the difference over that of the reference. Rounding is noise, its
  largest value says little; its energy can be predicted.

The prediction: a block of n weights is rounded to steps of extreme / 2^(bits - 1), where the
extreme of n normal values grows as sqrt(2 ln 2n) deviations. A step's error has a deviation of
step / sqrt(12). The activations that meet the weights are rounded to 8 bits in the same blocks.
A layer makes a few times that noise, and norms and residual sums keep it there: measured on random
models of 2 to 32 layers, 4 and 8 bits, blocks of 32 to 128, the outputs are off by 2 to 5.6 times
it. Random weights are the worst case: nothing in them makes a model forgive noise. Limits, rel L2:
8 bits in blocks of 128 0.073 (at full 2B size 0.050 measured), 4 bits in blocks of 64 0.76 (0.44);
an unrelated output has 1.41. A trained model is far better: the sample has 0.006 and 0.05.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["max abs", "rel L2"]

FLOAT32_MAX_ABS = 1e-4
# bfloat16 weights are exact in float16 but for those below its normal range, 6e-5, which lose up to
# 3e-8 each; float32 ones lose 11 of 24 bits.
FLOAT16_REL_L2 = 5e-3
NUM_ROUNDINGS = 4.0  # what a model makes of the noise of one rounding
MARGIN = 2.0  # on the prediction: real weights are not normal, real activations have outliers
ACTIVATION_BITS = 8
_PACKED = re.compile(r"int([48]) block (\d+)")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest value of a measure that passes."""

    measure: Measure
    limit: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an array is from its reference."""

    max_abs: float  # over the reference's root mean square, where that is above 1
    rel_l2: float
    cosine: float

    def is_within(self, tolerance: Tolerance) -> bool:
        """Whether the measure that counts is small enough; NaN never is."""
        value = self.max_abs if tolerance.measure == "max abs" else self.rel_l2
        return value <= tolerance.limit


def measure_difference(got: NDArray[np.floating], needed: NDArray[np.floating]) -> Difference:
    """Compare two arrays of one shape, in float64.

    Args:
        got: float[...], the bundle's.
        needed: float[...], the reference's.

    Raises:
        ValueError: their shapes differ.
    """
    if got.shape != needed.shape:
        raise ValueError(f"got shape {list(got.shape)}, the reference has {list(needed.shape)}")
    ours, theirs = got.astype(np.float64).ravel(), needed.astype(np.float64).ravel()
    norm_ours, norm_theirs = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    difference = ours - theirs
    scale = max(1.0, norm_theirs / math.sqrt(theirs.size))
    return Difference(
        max_abs=float(np.abs(difference).max()) / scale,
        rel_l2=float(np.linalg.norm(difference)) / max(norm_theirs, np.finfo(np.float64).tiny),
        cosine=float(ours @ theirs) / max(norm_ours * norm_theirs, np.finfo(np.float64).tiny),
    )


def choose_tolerance(precisions: Iterable[str]) -> Tolerance:
    """The tolerance of what some weights compute together: that of the coarsest of them.

    Args:
        precisions: of the weights, as a manifest records them.
    """
    kinds = set(precisions)
    packed = [match.groups() for kind in kinds if (match := _PACKED.fullmatch(kind))]
    if packed:
        noise = max(predict_noise(int(bits), int(block)) for bits, block in packed)
        return Tolerance("rel L2", MARGIN * noise)
    if "float16" in kinds:
        return Tolerance("rel L2", FLOAT16_REL_L2)
    return Tolerance("max abs", FLOAT32_MAX_ABS)


def predict_noise(bits: int, block_size: int) -> float:
    """Relative L2 error of a model's output, of normal weights; see the module's docstring."""
    leading = math.sqrt(2 * math.log(2 * block_size))
    # Of the largest of 2n normal values (n of either sign), Gumbel's mean to the next order.
    correction = math.log(leading**2 / 2) + math.log(4 * math.pi) - 2 * np.euler_gamma
    extreme = leading - correction / (2 * leading)
    steps = [extreme / 2 ** (b - 1) / math.sqrt(12) for b in (bits, ACTIVATION_BITS)]
    return NUM_ROUNDINGS * math.hypot(*steps)


def split_precisions(precision: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Precisions of the vision graph's and of the decoder graph's weights.

    The embedding table is copied as it is, and belongs to neither.
    """
    vision = [kind for name, kind in precision.items() if name.startswith("visual.")]
    table = "model.embed_tokens.weight"
    decoder = [
        kind for name, kind in precision.items() if not name.startswith("visual.") and name != table
    ]
    return vision, decoder
