"""Measure how far apart two arrays, two rows of logits or two answers are.

Everything is summed in float64. Of two arrays the reference comes second, as in "got, needed".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# float32 values that agree to their last bit but one are 140 dB apart; equal arrays are given this
# value instead of infinity, which JSON and plots have no place for.
MAX_SQNR_DB = 200.0
TOP_K = 5


@dataclass(frozen=True, slots=True)
class ArrayDistance:
    """How far an array is from its reference.

    Attributes:
        cosine: of the angle between them, all values as one vector.
        sqnr_db: energy of the reference over that of the difference, in decibels.
        max_abs: the largest difference of two values.
        rel_l2: L2 norm of the difference over that of the reference.
    """

    cosine: float
    sqnr_db: float
    max_abs: float
    rel_l2: float


@dataclass(frozen=True, slots=True)
class LogitDistance:
    """How far logits are from the reference's, a value a position; see `compare_logits`."""

    kl: NDArray[np.float64]
    top1: NDArray[np.float64]
    top5: NDArray[np.float64]
    first_divergence: int | None


def compare_arrays(got: NDArray[np.floating], needed: NDArray[np.floating]) -> ArrayDistance:
    """Compare two arrays of one shape, finite values only.

    Args:
        got: float[...], the bundle's.
        needed: float[...], the reference's.

    Raises:
        ValueError: their shapes differ, or they are empty.
    """
    _check_shapes(got, needed)
    ours, theirs = got.astype(np.float64).ravel(), needed.astype(np.float64).ravel()
    norm_ours, norm_theirs = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    difference = ours - theirs
    error = float(np.linalg.norm(difference))
    return ArrayDistance(
        # Of equal arrays it would miss 1 by a rounding, where the CPU adds in another order
        cosine=1.0 if error == 0 else _cosine(float(ours @ theirs), norm_ours, norm_theirs),
        sqnr_db=sqnr_from_norms(norm_theirs, error),
        max_abs=float(np.abs(difference).max()),
        rel_l2=error / max(norm_theirs, float(np.finfo(np.float64).tiny)),
    )


def sqnr_from_norms(reference: float, error: float) -> float:
    """20 log10(reference / error) in decibels, within ±MAX_SQNR_DB."""
    if error == 0:
        return MAX_SQNR_DB
    if reference == 0:
        return -MAX_SQNR_DB
    decibels = 20 * (np.log10(reference) - np.log10(error))
    return float(np.clip(decibels, -MAX_SQNR_DB, MAX_SQNR_DB))


def compare_logits(got: NDArray[np.floating], needed: NDArray[np.floating]) -> LogitDistance:
    """Compare logits position by position.

    Args:
        got: float[P, V], finite.
        needed: float[P, V], the reference's.

    Returns:
        kl: float64[P], see `kl_divergence`.
        top1: float64[P], 1 where the best token is the same.
        top5: float64[P], share of the five best tokens that both have, whatever their order.
        first_divergence: the first position whose best token differs, None if none does.

    Raises:
        ValueError: their shapes differ, or they are empty.
    """
    _check_shapes(got, needed)
    k = min(TOP_K, needed.shape[1])
    ours = [top_tokens(row, k) for row in got]
    theirs = [top_tokens(row, k) for row in needed]
    pairs = list(zip(ours, theirs, strict=True))
    is_same = np.array([a[0] == b[0] for a, b in pairs])
    return LogitDistance(
        kl=kl_divergence(got, needed),
        top1=is_same.astype(np.float64),
        top5=np.array([len(np.intersect1d(a, b)) / k for a, b in pairs]),
        first_divergence=None if is_same.all() else int(is_same.argmin()),
    )


def kl_divergence(got: NDArray[np.floating], needed: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL(needed || got) in nats, of the distributions that logits stand for.

    Args:
        got: float[..., V], finite.
        needed: float[..., V], the reference's.

    Returns:
        float64[...], 0 or more.
    """
    ours, theirs = log_softmax(got), log_softmax(needed)
    # Where both are nearly equal rounding may leave a sum just below 0, which no KL is.
    return np.maximum((np.exp(theirs) * (theirs - ours)).sum(axis=-1), 0.0)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithms of the probabilities of finite logits; any size of them is safe.

    float[..., V] -> float64[..., V].
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_tokens(logits: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """The k best tokens, best first: float[V] -> int64[k].

    Of equal ones the lower id comes first, as argmax has it.
    """
    threshold = np.partition(logits, -k)[-k]
    candidates = np.flatnonzero(logits >= threshold)
    return candidates[np.argsort(-logits[candidates], kind="stable")][:k]


def count_common_prefix(got: Sequence[int], needed: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    pairs = zip(got, needed, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(needed)))


def measure_edit_distance(got: str, needed: str) -> int:
    """Levenshtein's: the fewest characters to insert, delete or replace."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(got, needed)


def _cosine(product: float, norm_a: float, norm_b: float) -> float:
    if norm_a == 0 or norm_b == 0:  # two zeros point the same way, a zero and something else don't
        return float(norm_a == norm_b)
    return float(np.clip(product / norm_a / norm_b, -1.0, 1.0))


def _check_shapes(got: NDArray[np.floating], needed: NDArray[np.floating]) -> None:
    if got.shape != needed.shape or not got.size:
        raise ValueError(
            f"got values of shape {list(got.shape)}, the reference has {list(needed.shape)}"
        )
