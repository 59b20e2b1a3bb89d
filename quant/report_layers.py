"""Errors of layers -> the report's walk through the graphs, its heat maps and its table."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .findings import LayerFinding
from .heat_map import heat_map
from .page import Cell, Figure, Section, Table, num
from .plots import Series, line_plot
from .svg import fixed
from .unusual import describe_layer, find_unusual

SCALE_DB = (40.0, 0.0)  # of the heat maps: the same in all reports, so that they compare
SHOWN_DB = 90.0  # equal outputs are 200 dB apart, which would flatten everything else
_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")  # visual.blocks, 3, mlp.fc2


def layer_sections(layers: Sequence[LayerFinding]) -> list[Section]:
    """The section of layers; none where they were not compared."""
    if not layers:
        return []
    outliers = find_unusual(layers)
    names = list(dict.fromkeys(finding.layer for finding in layers))
    buckets = sort_buckets({finding.bucket for finding in layers})
    texts = [
        f"{len(names)} layers in {len(buckets)} picture sizes. Own error: both sides are given the "
        "reference's input, so that a layer answers for itself alone; cumulative: with the errors "
        "of all layers before it. In dB of SQNR: 10 dB less is ten times the error power.",
        f"{len(outliers)} are unusual for their precision: their formats do not explain the error."
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


def split_layer(name: str) -> tuple[str, int, str] | None:
    """visual.blocks.3.mlp.fc2 -> ("visual.blocks", 3, "mlp.fc2"); None for a layer of no block."""
    match = _BLOCK.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


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
    svg = line_plot(
        series,
        y_label="SQNR, dB",
        names=names,
        marks=marks,
        height=300,
        label="Error of each layer alone and grown, from the first layer to the last",
    )
    caption = "From the first layer to the last, each in the picture size that is worst for it."
    return Figure(svg, caption)


def _heat_maps(layers: Sequence[LayerFinding], buckets: Sequence[str]) -> list[Figure]:
    """A map a stack of blocks (rows: blocks, columns: kinds by size), one for single layers."""
    own = {(finding.layer, finding.bucket): finding.own_sqnr_db for finding in layers}
    stacks: dict[str, dict[str, tuple[int, str]]] = {}
    single: list[str] = []
    for name in dict.fromkeys(finding.layer for finding in layers):
        if parts := split_layer(name):
            stacks.setdefault(parts[0], {})[name] = parts[1:]
        else:
            single.append(name)
    figures = []
    for stack, members in stacks.items():
        kinds = list(dict.fromkeys(kind for _, kind in members.values()))
        blocks = sorted({block for block, _ in members.values()})
        present = [b for b in buckets if any((name, b) in own for name in members)]
        cells = {(block, kind): name for name, (block, kind) in members.items()}
        values = [
            [own.get((cells.get((block, kind), ""), b)) for kind in kinds for b in present]
            for block in blocks
        ]
        columns = [f"{short_kind(kind, kinds)} {b}" for kind in kinds for b in present]
        figures.append(_own_map([str(block) for block in blocks], columns, values, stack))
    if single:
        present = [b for b in buckets if any((name, b) in own for name in single)]
        values = [[own.get((name, b)) for b in present] for name in single]
        figures.append(_own_map(single, present, values, "the other layers"))
    return figures


def short_kind(kind: str, kinds: Sequence[str]) -> str:
    """self_attn.o_proj -> o_proj, unless another kind ends the same."""
    last = kind.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in kinds) == 1 else kind


def _own_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    what: str,
) -> Figure:
    shown = [[None if v is None else _shown(v) for v in row] for row in values]
    label = f"Own SQNR of {what} by layer and picture size"
    svg = heat_map(rows, columns, shown, "dB", better="higher", scale=SCALE_DB, label=label)
    return Figure(svg, f"{what}: own SQNR in dB, by layer and picture size.")


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
    return Table(columns, rows, f"All {len(names)} layers, each in its worst picture size")


def _worst(layers: Sequence[LayerFinding], field: str) -> dict[str, float]:
    worst: dict[str, float] = {}
    for finding in layers:
        value, known = getattr(finding, field), worst.get(finding.layer, math.inf)
        worst[finding.layer] = value if math.isnan(value) else min(known, value)
    return worst


def _shown(value: float) -> float:
    return min(value, SHOWN_DB) if not math.isnan(value) else value
