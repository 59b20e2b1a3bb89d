"""Measure the damage to image embeddings and logits, as sums that can be added and shared out.

Sums of squares and of KL are kept per picture size and not ratios, so that sizes add up to the
whole. To second order both are quadratic in the error: errors of layers that have nothing to do
with each other add up in them, half the error is a quarter of the sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Manifest
from ...runtime.inputs.patches import VisualInput
from ..compare.measures import kl_divergence, sqnr_from_norms
from ..data.buckets import coverage_of
from ..graph.feeds import Prompt

ALL = "all"
TEXT = "text"  # prompts without a picture


@dataclass(frozen=True, slots=True)
class Damage:
    """Sums over some pictures and prompts.

    Attributes:
        embeds_error, embeds_signal: squares of the merged image embeddings' error, and of them.
        logits_error, logits_signal: the same of the logits that predict the answers.
        kl: KL(float || quantized) of those predictions, nats.
        num_positions: how many predictions.
    """

    embeds_error: float = 0.0
    embeds_signal: float = 0.0
    logits_error: float = 0.0
    logits_signal: float = 0.0
    kl: float = 0.0
    num_positions: int = 0

    @property
    def embeds_rel_l2(self) -> float | None:
        """Relative L2 error of image embeddings; None: no picture was looked at."""
        return _ratio(self.embeds_error, self.embeds_signal)

    @property
    def embeds_sqnr_db(self) -> float | None:
        """The same in decibels."""
        if not self.embeds_signal:
            return None
        return sqnr_from_norms(self.embeds_signal**0.5, self.embeds_error**0.5)

    @property
    def logits_rel_l2(self) -> float | None:
        """Relative L2 error of logits."""
        return _ratio(self.logits_error, self.logits_signal)

    @property
    def kl_mean(self) -> float | None:
        """Mean KL of a prediction, nats."""
        return self.kl / self.num_positions if self.num_positions else None

    def __add__(self, other: Damage) -> Damage:
        return _from_values([a + b for a, b in zip(_values(self), _values(other), strict=True)])

    def share(self, share: float) -> Damage:
        """A share of the errors, of all that was measured."""
        return self._change(lambda error, _: error * share, self)

    def without(self, other: Damage) -> Damage:
        """The errors that are left if some are taken away; never less than none."""
        return self._change(lambda mine, theirs: max(mine - theirs, 0.0), other)

    def _change(self, rule, other: Damage) -> Damage:
        errors = ("embeds_error", "logits_error", "kl")
        changed = {name: rule(getattr(self, name), getattr(other, name)) for name in errors}
        return dataclasses.replace(self, **changed)


# Picture size, or ALL, or TEXT -> sums
Damages = dict[str, Damage]


class Buckets:
    """Names of picture sizes: parts of a bundle's budget, as calibration is summarized."""

    def __init__(self, manifest: Manifest) -> None:
        self._merged = manifest.vision.spatial_merge_size**2
        self._parts = [(c.min_tokens, c.max_tokens) for c in coverage_of((), manifest)]

    def name(self, visual: VisualInput) -> str:
        """Of a picture: "17-40 tokens"; of a clip by one frame pair: "clip 17-40 tokens"."""
        tokens = visual.grid.h * visual.grid.w // self._merged
        low, high = next((p for p in self._parts if tokens <= p[1]), self._parts[-1])
        return f"{'clip ' if visual.kind == 'video' else ''}{low}-{high} tokens"

    def name_prompt(self, prompt: Prompt) -> str:
        """That of its first picture."""
        visuals = prompt.request.visuals
        return self.name(visuals[0]) if visuals else TEXT

    def sort(self, names: Iterable[str]) -> list[str]:
        """Pictures by size, then clips, then text, then all together."""
        order = [f"{a}-{b} tokens" for a, b in self._parts]
        order += [f"clip {name}" for name in order]
        order += [TEXT, ALL]
        return sorted(set(names), key=order.index)


def measure_embeds(got: NDArray[np.float32], needed: NDArray[np.float32]) -> Damage:
    """Measure the damage to one picture's embeddings.

    Args:
        got: float32[num_tokens, D], the variant's.
        needed: float32[num_tokens, D], the float model's.
    """
    error, signal = _squares(got, needed)
    return Damage(embeds_error=error, embeds_signal=signal)


def measure_logits(got: NDArray[np.float32], needed: NDArray[np.float32]) -> Damage:
    """Measure the damage to one prompt's predictions.

    Args:
        got: float32[P, V], the variant's.
        needed: float32[P, V], the float model's.
    """
    error, signal = _squares(got, needed)
    kl = float(kl_divergence(got, needed).sum())
    return Damage(logits_error=error, logits_signal=signal, kl=kl, num_positions=len(needed))


def add_up(found: Iterable[tuple[str, Damage]]) -> Damages:
    """Sum by picture size, and all together."""
    sums: Damages = {}
    for bucket, damage in found:
        for name in (bucket, ALL):
            sums[name] = sums.get(name, Damage()) + damage
    return sums


def subtract(total: Damages, own: Damages) -> Damages:
    """What is left of each size."""
    return {name: damage.without(own.get(name, Damage())) for name, damage in total.items()}


def drop_embeds(damages: Damages) -> Damages:
    """Without what the decoder has no part in."""
    return {
        name: dataclasses.replace(damage, embeds_error=0.0, embeds_signal=0.0)
        for name, damage in damages.items()
    }


def share_out(whole: Damages, errors: Mapping[str, Mapping[str, float]]) -> dict[str, Damages]:
    """Damage that several layers do together -> of each one its share of the error's power.

    Args:
        whole: of all of them.
        errors: layer -> picture size -> sum of squares of the error it makes by itself.
    """
    shared: dict[str, Damages] = {layer: {} for layer in errors}
    for bucket, damage in whole.items():
        total = sum(error.get(bucket, 0.0) for error in errors.values())
        for layer, error in errors.items():
            power = error.get(bucket, 0.0)
            shared[layer][bucket] = damage.share(power / total if total else 0.0)
    return shared


def damages_to_json(damages: Damages) -> dict[str, list[float]]:
    """As lists in the order of Damage's fields."""
    return {name: list(_values(damage)) for name, damage in damages.items()}


def damages_from_json(data: Mapping[str, Sequence[float]]) -> Damages:
    """The same back."""
    return {name: _from_values(values) for name, values in data.items()}


def _values(damage: Damage) -> tuple[float, ...]:
    return tuple(getattr(damage, field.name) for field in dataclasses.fields(damage))


def _from_values(values: Sequence[float]) -> Damage:
    *sums, num_positions = values
    return Damage(*sums, num_positions=int(num_positions))


def _ratio(error: float, signal: float) -> float | None:
    return (error / signal) ** 0.5 if signal else None


def _squares(got: NDArray[np.float32], needed: NDArray[np.float32]) -> tuple[float, float]:
    difference = got.astype(np.float64) - needed
    return float((difference**2).sum()), float((needed.astype(np.float64) ** 2).sum())
