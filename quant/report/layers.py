"""Show the errors of layers: the walk through the graphs, heat maps and a table."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..compare.findings import LayerFinding
from ..files.grammar import agree, counted, everything
from ..gate.unusual import describe_layer, find_unusual
from .layer_axis import split_layer as split_layer
from .layer_maps import Shading, draw_layer_maps
from .layer_maps import short_kind as short_kind
from .page import Cell, Figure, Section, Table, num
from .plots import Series, draw_twice, line_plot
from .svg import fixed

SCALE_DB = (40.0, 0.0)  # of the heat maps: the same in all reports, so that they compare
SHOWN_DB = 90.0  # equal outputs are 200 dB apart, which would flatten everything else


def layer_sections(layers: Sequence[LayerFinding]) -> list[Section]:
    """The section of layers; none where they were not compared."""
    if not layers:
        return []
    outliers = find_unusual(layers)
    names = list(dict.fromkeys(finding.layer for finding in layers))
    buckets = sort_buckets({finding.bucket for finding in layers})
    texts = [
        f"{counted(len(names), 'layer')} in {counted(len(buckets), 'picture size')}. Own error: "
        "both sides are given the reference's input, so that a layer answers for itself alone; "
        "cumulative: with the errors of all layers before it. In dB of SQNR: 10 dB less is ten "
        "times the error power.",
        agree(
            len(outliers),
            "1 is unusual for its precision: its format does not explain the error.",
            f"{len(outliers)} are unusual for their precision: their formats do not explain the "
            "error.",
        )
        if outliers
        else "None is unusual for its precision.",
    ]
    if any(finding.sqnr_db > SHOWN_DB for finding in layers):
        texts.append(f"Values above {SHOWN_DB:.0f} dB are drawn at {SHOWN_DB:.0f}.")
    items: list[Figure | Table] = []
    if outliers:
        items.append(_outlier_table(outliers))
    items += [_growth(layers, names), *_heat_maps(layers, buckets), _table(layers, names)]
    return [Section("layers", "Error by layer", tuple(texts), tuple(items))]


def sort_buckets(buckets: set[str]) -> list[str]:
    """Pictures by size, then clips by size, then what has none."""

    def key(bucket: str) -> tuple[bool, bool, int, str]:
        numbers = [int(number) for number in re.findall(r"\d+", bucket)]
        return not numbers, len(numbers) > 2, math.prod(numbers), bucket

    return sorted(buckets, key=key)


def _outlier_table(outliers: Sequence[LayerFinding]) -> Table:
    columns = (
        Cell("layer"),
        Cell("precision"),
        Cell("picture size"),
        Cell("own SQNR, dB", "num"),
        Cell("worst output channel"),
        Cell("its SQNR, dB", "num"),
    )
    rows = tuple(
        (
            Cell(finding.layer, "name", describe_layer(finding)),
            Cell(finding.precision),
            Cell(finding.bucket),
            num(fixed(finding.own_sqnr_db, 1), "bad"),
            Cell(finding.worst_channel, "quiet"),
            num(fixed(finding.worst_channel_db, 1)),
        )
        for finding in outliers
    )
    folded = len(rows) > 12
    return Table(columns, rows, f"All {len(rows)} unusual layers" if folded else "")


def _growth(layers: Sequence[LayerFinding], names: Sequence[str]) -> Figure:
    """Own errors as points, the grown one as a line, each in its worst picture size."""
    own, grown = _worst(layers, "own_sqnr_db"), _worst(layers, "sqnr_db")
    decoder = next((i for i, name in enumerate(names) if not name.startswith("visual.")), None)
    marks = [(0, "vision")] if decoder != 0 else []
    marks += [(decoder, "decoder")] if decoder is not None else []
    series = (
        Series("layer alone", [_shown(own[name]) for name in names], "worst", is_points=True),
        Series("with all errors before it", [_shown(grown[name]) for name in names], "got"),
    )
    wide, narrow = draw_twice(
        lambda width: line_plot(
            series,
            y_label="SQNR, dB",
            names=names,
            marks=marks,
            height=300,
            width=width,
            label="Error of each layer alone and grown, from the first layer to the last",
        )
    )
    caption = "From the first layer to the last, each in the picture size that is worst for it."
    return Figure(wide, caption, narrow)


def _heat_maps(layers: Sequence[LayerFinding], buckets: Sequence[str]) -> list[Figure]:
    """A figure a stack of blocks with a map a kind, and one for single layers."""
    own = {(finding.layer, finding.bucket): _shown(finding.own_sqnr_db) for finding in layers}
    names = list(dict.fromkeys(finding.layer for finding in layers))
    shading = Shading("dB", better="higher", scale=SCALE_DB)
    return draw_layer_maps(own, names, buckets, shading, "own SQNR in dB")


def _table(layers: Sequence[LayerFinding], names: Sequence[str]) -> Table:
    own, grown = _worst(layers, "own_sqnr_db"), _worst(layers, "sqnr_db")
    precision = {finding.layer: finding.precision for finding in layers}
    columns = (
        Cell("layer"),
        Cell("precision"),
        Cell("own SQNR, dB", "num"),
        Cell("cumulative SQNR, dB", "num"),
    )
    rows = tuple(
        (
            Cell(name, "name"),
            Cell(precision[name]),
            num(fixed(own[name], 1)),
            num(fixed(grown[name], 1)),
        )
        for name in names
    )
    return Table(
        columns, rows, f"{everything(len(names), 'layer')}, each in the worst picture size"
    )


def _worst(layers: Sequence[LayerFinding], field: str) -> dict[str, float]:
    worst: dict[str, float] = {}
    for finding in layers:
        value, known = getattr(finding, field), worst.get(finding.layer, math.inf)
        worst[finding.layer] = value if math.isnan(value) else min(known, value)
    return worst


def _shown(value: float) -> float:
    return min(value, SHOWN_DB) if not math.isnan(value) else value
