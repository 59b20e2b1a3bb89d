"""Compute the interval of the ratio of two bundles' times, run by run.

Each run measures both, one right after the other, so a run gives one ratio; the spread of the
ratios over the runs is what the measurement doesn't know. Ratios multiply, so their logarithms are
averaged, with Student's t for few runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Student's t that 97.5 % stay under, for 1 to 30 degrees of freedom
_STUDENT_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
MOST_RUNS = 1000


def student_t(num_values: int) -> float:
    """Student's t of a 95 % interval of the mean of some values; infinite for a single one."""
    freedom = num_values - 1
    if freedom < 1:
        return math.inf
    if freedom <= len(_STUDENT_T):
        return _STUDENT_T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    # Cornish-Fisher: from 30 degrees on exact to four digits
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate_ratio(got: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of paired measurements: its least, its best estimate, its most, with 95 %.

    Args:
        got: above 0, one a run.
        reference: above 0, of the same runs.

    Returns:
        The middle one is the geometric mean of the runs' ratios. A single run has no spread: its
        interval is from 0 to infinity. NaN where a measurement is none.
    """
    if not all(value > 0 for value in (*got, *reference)):
        return math.nan, math.nan, math.nan
    logs = [math.log(a / b) for a, b in zip(got, reference, strict=True)]
    middle, reach = statistics.fmean(logs), _reach(logs, len(logs))
    if not math.isfinite(reach):
        return 0.0, math.exp(middle), math.inf
    return math.exp(middle - reach), math.exp(middle), math.exp(middle + reach)


def count_runs_needed(got: Sequence[float], reference: Sequence[float], limit: float) -> int | None:
    """About how many runs of the same spread tell the ratio from a limit; None: over MOST_RUNS."""
    logs = [math.log(a / b) for a, b in zip(got, reference, strict=True)]
    if len(logs) < 2 or not limit > 0:
        return None
    distance = abs(statistics.fmean(logs) - math.log(limit))
    counts = range(len(logs), MOST_RUNS + 1)
    return next((count for count in counts if _reach(logs, count) <= distance), None)


def _reach(logs: Sequence[float], num_runs: int) -> float:
    """Half of the interval if `num_runs` runs spread as these do."""
    if len(logs) < 2:
        return math.inf
    return student_t(num_runs) * statistics.stdev(logs) / math.sqrt(num_runs)
