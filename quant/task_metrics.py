"""A prediction and the accepted answers -> a score of 0 to 1, as each benchmark defines it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .examples import Example


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score an answer.

    Attributes:
        source: the paper or code that defines it.
        function: (prediction, accepted answers, example) -> 0 (wrong) to 1 (right).
    """

    name: str
    source: str
    function: Callable[[str, tuple[str, ...], Example], float]


def _score_exact(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return float(prediction.strip() in answers)


METRICS = {
    metric.name: metric
    for metric in (Metric("exact_match", "equal to an accepted answer", _score_exact),)
}
