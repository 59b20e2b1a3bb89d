"""Run the same inputs through a reference and a bundle, and measure the error of every layer.

reference   x -> layer -> y        some rows of every x and y are kept
own error   x -> bundle's layer -> against y: who is guilty
in all      the bundle's own walk  -> against y: what has come together up to here
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import BundleError
from ..data.buckets import name_bucket
from ..data.examples import Example
from ..graph.feeds import Prompt, make_prompts
from .findings import LayerFinding
from .gauges import Gauge, check_shapes, find_gauges
from .layer_channels import ROWS_AT_ONCE, ChannelErrors, ChannelSums, estimate_rounding, split_parts
from .layer_rows import LayerTracer, OnStep, RowShelf
from .layer_walk import LayeredBundle
from .measures import sqnr_from_norms

TEXT = "text"  # the bucket of a prompt without pictures


@dataclass(slots=True)
class _Errors:
    """Of one layer in one bucket: its own are complete before the grown one begins."""

    own: float
    channels: ChannelErrors
    reference: float  # sum of squares
    total: float = 0.0  # likewise, of the grown error


@dataclass(frozen=True, slots=True)
class Traced:
    """The reference's half of a comparison, complete: it can be closed.

    Attributes:
        prompts: the inputs, in order.
        gauges: of every layer of the bundle.
        shelf: with the reference's rows.
        matrices: errors of every layer's matrix by output channel.
        rounding: what rounding it costs by output channel; None of a float one.
    """

    prompts: Sequence[Prompt]
    gauges: Mapping[str, Gauge]
    shelf: RowShelf
    matrices: Mapping[str, ChannelSums]
    rounding: Mapping[str, NDArray[np.float64] | None]


def trace_reference(
    ours: LayeredBundle,
    reference: LayerTracer,
    examples: Sequence[Example],
    shelf: RowShelf,
    on_step: OnStep,
) -> Traced:
    """Keep what goes through the reference's layers.

    Args:
        ours: the bundle, whose prompts and layers are taken.
        reference: a bundle or a checkpoint of the same model.
        examples: to look at; their answers, where known, are walked through too.
        shelf: to fill.
        on_step: told what is being done.

    Raises:
        ValueError: an example that doesn't fit the model.
        BundleError: a damaged bundle, or values that are not finite, by name.
        OSError: no room for the rows.
    """
    prompts = make_prompts(ours.folder, ours.manifest, examples)
    reference.trace(prompts, list(ours.layers), shelf.put, on_step)
    on_step("migrated scales")
    gauges = find_gauges(ours.layers, ours.find_folds(), ours, reference)
    matrices: dict[str, ChannelSums] = {}
    rounding: dict[str, NDArray[np.float64] | None] = {}
    for layer in ours.layers:
        if shelf.list_inputs(layer):
            on_step(f"matrix of {layer}")
            got, needed = ours.read_matrix(layer), reference.read_matrix(layer)
            check_shapes(layer, got, needed)
            matrices[layer] = ChannelSums(len(got))
            power = _measure_power(shelf, layer)
            matrices[layer].add_matrix(got, needed, gauges[layer], power)
            rounding[layer] = estimate_rounding(needed, power, ours.precisions[layer])
    return Traced(prompts, gauges, shelf, matrices, rounding)


def compare_layers(
    ours: LayeredBundle, traced: Traced, on_step: OnStep
) -> tuple[LayerFinding, ...]:
    """Take the bundle through the same inputs.

    Returns:
        A finding a layer and bucket, in the order layers run.

    Raises:
        ValueError: the two are different models.
        BundleError: a damaged bundle, or values that are not finite, by name.
    """
    shelf, gauges = traced.shelf, traced.gauges
    buckets = _Buckets(ours, traced.prompts)
    errors: dict[tuple[str, str], _Errors] = {}
    on_step(f"{ours.name}: each layer alone")
    for layer in ours.layers:
        parts = split_parts(layer, ours.layers[layer].linear.out_features, ours.manifest)
        for bucket, sums in _measure_own(ours, layer, shelf, gauges[layer], buckets).items():
            views = [
                view.summarize(parts, traced.rounding[layer])
                for view in (sums, traced.matrices[layer])
            ]
            seen = max(views, key=lambda view: view.distance)
            found = dataclasses.replace(seen, parts=views[0].parts)
            errors[layer, bucket] = _Errors(sums.sqnr_db, found, float(sums.signal.sum()))

    def measure_total(
        layer: str, number: int, _x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> None:
        if number not in shelf.list_inputs(layer):
            return
        _, needed = shelf.read(layer, number)
        _check_shape(layer, y, needed)
        errors[layer, buckets.find(layer, number)].total += _measure_error(y, gauges[layer], needed)

    ours.trace(traced.prompts, list(ours.layers), measure_total, on_step)
    return tuple(
        LayerFinding(
            layer=layer,
            precision=ours.precisions[layer],
            bucket=bucket,
            own_sqnr_db=found.own,
            sqnr_db=sqnr_from_norms(np.sqrt(found.reference), np.sqrt(found.total)),
            part_sqnr_db=found.channels.parts,
            worst_channel=found.channels.worst,
            worst_channel_db=found.channels.worst_db,
            channel_gap_db=found.channels.gap_db,
            channel_sigma_db=found.channels.sigma_db,
        )
        for (layer, bucket), found in errors.items()
    )


def find_departure(findings: Sequence[LayerFinding], tolerance: float) -> LayerFinding | None:
    """The first layer whose error in all is beyond a relative L2 error, in its worst bucket."""
    limit_db = -20 * np.log10(tolerance)
    for layer in dict.fromkeys(finding.layer for finding in findings):
        worst = min((f for f in findings if f.layer == layer), key=lambda f: f.sqnr_db)
        if worst.sqnr_db < limit_db:
            return worst
    return None


def find_not_finite(bundle: str | Path, example: Example) -> str:
    """Where a bundle first makes NaN or infinity of an example; "" if no layer does."""
    ours = LayeredBundle(bundle)
    prompts = make_prompts(ours.folder, ours.manifest, [example])
    try:
        ours.trace(prompts, (), lambda *_: None, lambda _: None)
    except BundleError as error:
        return str(error)
    return ""


class _Buckets:
    """Of each input of the ViT and of the decoder."""

    def __init__(self, bundle: LayeredBundle, prompts: Sequence[Prompt]) -> None:
        vision = bundle.manifest.vision
        named = [[name_bucket(v, vision) for v in p.request.visuals] for p in prompts]
        self._vision = [bucket for mine in named for bucket in mine]
        self._decoder = [mine[0] if mine else TEXT for mine in named]

    def find(self, layer: str, number: int) -> str:
        return (self._vision if layer.startswith("visual.") else self._decoder)[number]


def _measure_power(shelf: RowShelf, layer: str) -> NDArray[np.float64]:
    """Mean squares float64[in] of what goes into the reference's layer."""
    inputs = [shelf.read(layer, number)[0] for number in shelf.list_inputs(layer)]
    sums = sum(np.einsum("ij,ij->j", x, x, dtype=np.float64) for x in inputs)
    return np.asarray(sums) / sum(len(x) for x in inputs)


def _measure_own(
    bundle: LayeredBundle,
    layer: str,
    shelf: RowShelf,
    gauge: Gauge,
    buckets: _Buckets,
) -> dict[str, ChannelSums]:
    """One layer alone, given what goes into the reference's, by bucket."""
    sums: dict[str, ChannelSums] = {}
    if not shelf.list_inputs(layer):
        return sums
    session = bundle.open_layer(layer)
    name = bundle.layers[layer].linear.input
    for number in shelf.list_inputs(layer):
        x, needed = shelf.read(layer, number)
        if x.shape[1] != len(gauge.input):
            raise ValueError(
                f"{layer} has {len(gauge.input)} inputs, the reference's {x.shape[1]}: these are "
                "two different models"
            )
        y = np.asarray(session.run(None, {name: x / gauge.input})[0])
        _check_shape(layer, y, needed)
        if not np.isfinite(y).all():
            raise BundleError(f"{layer} makes NaN or infinity of the reference's input")
        bucket = buckets.find(layer, number)
        mine = sums.setdefault(bucket, ChannelSums(y.shape[1]))
        mine.add(y * gauge.output, needed)
    return sums


def _check_shape(layer: str, got: NDArray[np.float32], needed: NDArray[np.float32]) -> None:
    if got.shape != needed.shape:
        raise ValueError(
            f"{layer} gives {list(got.shape)}, the reference {list(needed.shape)}: these are two "
            "different models"
        )


def _measure_error(y: NDArray[np.float32], gauge: Gauge, needed: NDArray[np.float32]) -> float:
    """Sum of squares of the difference, some rows at a time: a row of logits is 150,000 numbers."""
    total = 0.0
    for start in range(0, len(y), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        difference = y[rows] * gauge.output - needed[rows]
        total += float(np.einsum("ij,ij->", difference, difference, dtype=np.float64))
    return total
