"""Show a sensitivity: ranked table for a terminal, JSON for programs, heat maps for the report."""

from __future__ import annotations

import json
from typing import Any

from ...runtime.terminal.console import print_line, print_table
from ..files.grammar import counted, everything
from ..report.layer_maps import Shading, draw_layer_maps
from ..report.page import Cell, Figure, Headline, Section, Table, num, render_page
from .damage import ALL, Damage, Damages
from .measure import Sensitivity
from .rows import SensitivityRow

SCHEMA = 1
NUM_SHOWN = 30  # layers in the terminal's table
# Least harm that heat maps tell apart, against the greatest; KL goes with the square of the error
SHADE_RATIOS = {"embeds_rel_l2": 1e-2, "kl_mean": 1e-4}
EXPLANATION = {
    "exact": "Each layer was quantized alone, and everything but it, and the model run to its end.",
    "fast": "Each block was quantized alone and the model run to its end; its damage is shared out "
    "to its layers by the power of their own errors in the block's output. Everything but a layer "
    "is what all do together less its share.",
}


def print_sensitivity(result: Sensitivity) -> None:
    """The most harmful layers on stdout."""
    rows = result.ranked
    columns = (
        "layer",
        "format",
        ">own SQNR dB",
        ">embeds rel L2",
        ">logits rel L2",
        ">KL",
        ">embeds without it",
        ">KL without it",
    )
    title = (
        f"{result.recipe} on {result.bundle}: {counted(len(rows), 'layer')} by damage alone, "
        f"{result.mode}, {result.num_measured} of {counted(result.num_examples, 'example')} of "
        f"{result.data}"
    )
    print_table(title, columns, [_list_cells(row) for row in rows[:NUM_SHOWN]])
    if len(rows) > NUM_SHOWN:
        more = counted(len(rows) - NUM_SHOWN, "less harmful one")
        print_line(f"and {more} (all of them with --json or --out)")
    total = result.total[ALL]
    print_line(
        f"all together: embeddings {_percent(total.embeds_rel_l2)}, logits "
        f"{_percent(total.logits_rel_l2)}, KL {_exponent(total.kl_mean)} nats"
    )


def to_json(result: Sensitivity) -> dict[str, Any]:
    """Everything, rows ranked; units are in the names of keys, ratios have none."""
    return {
        "schema": SCHEMA,
        "bundle": result.bundle,
        "recipe": result.recipe,
        "data": result.data,
        "data_sha256": result.data_sha256,
        "num_examples": result.num_examples,
        "num_measured": result.num_measured,
        "mode": result.mode,
        "buckets": list(result.buckets),
        "total": _describe_all(result.total),
        "layers": [
            {
                "layer": row.layer,
                "part": row.part,
                "format": row.format,
                "own_sqnr_db": row.own_sqnr_db,
                "alone": _describe_all(row.alone),
                "rest": _describe_all(row.rest),
            }
            for row in result.ranked
        ],
    }


def format_json(result: Sensitivity) -> str:
    """The text of sensitivity.json."""
    return json.dumps(to_json(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sensitivity_section(result: Sensitivity) -> Section:
    """Of a report, its own or a check's."""
    texts = (
        f"What each layer that {result.recipe} quantizes does to the merged image embeddings and "
        f"to the logits along the known answers. {EXPLANATION[result.mode]}",
        f"Measured on {result.num_measured} of {counted(result.num_examples, 'example')} of "
        f"{result.data}.",
    )
    maps = [
        _draw(result, "vision", "embeds_rel_l2", 100.0, "%", "relative L2 of image embeddings"),
        _draw(result, None, "kl_mean", 1.0, "nats", "mean KL of logits"),
    ]
    figures = [figure for drawn in maps for figure in drawn]
    return Section("sensitivity", "Sensitivity of layers", texts, (*figures, _make_table(result)))


def render_sensitivity(result: Sensitivity) -> str:
    """The text of sensitivity.html."""
    worst = result.ranked[0]
    total = result.total[ALL]
    headline = Headline(
        state="none",
        badge=result.mode,
        title=f"{worst.layer} does most damage",
        facts=(
            ("bundle", result.bundle),
            ("recipe", result.recipe),
            ("data", f"{result.data}, {counted(result.num_examples, 'example')}"),
            ("all together, embeddings", _percent(total.embeds_rel_l2)),
            ("all together, KL", f"{_exponent(total.kl_mean)} nats"),
        ),
    )
    return render_page(
        f"Sensitivity of {result.bundle} to {result.recipe}",
        headline,
        [sensitivity_section(result)],
    )


def _draw(
    result: Sensitivity, part: str | None, measure: str, factor: float, unit: str, what: str
) -> list[Figure]:
    """Layers by picture size, each quantized alone; none where nothing was measured."""
    rows = [row for row in result.rows if part in (None, row.part)]
    values = {
        (row.layer, bucket): _read(row.alone, bucket, measure, factor)
        for row in rows
        for bucket in result.buckets
    }
    greatest = max((value for value in values.values() if value is not None), default=0.0)
    if not greatest:
        return []
    scale = (greatest * SHADE_RATIOS[measure], greatest)
    shading = Shading(unit, is_log=True, scale=scale)
    names = [row.layer for row in rows]
    return draw_layer_maps(
        values, names, result.buckets, shading, f"{what}, each layer quantized alone"
    )


def _read(damages: Damages, bucket: str, measure: str, factor: float) -> float | None:
    value = getattr(damages.get(bucket, Damage()), measure)
    return None if value is None else value * factor


def _make_table(result: Sensitivity) -> Table:
    names = ("own SQNR, dB", "embeddings", "logits", "KL, nats", "embeddings without", "KL without")
    columns = (Cell("layer"), Cell("format"), *(Cell(name, "num") for name in names))
    rows = [_list_cells(row) for row in result.ranked]
    cells = [(Cell(r[0], "name"), Cell(r[1]), *(num(text) for text in r[2:])) for r in rows]
    return Table(columns, tuple(cells), f"{everything(len(rows), 'layer')}, the most harmful first")


def _list_cells(row: SensitivityRow) -> list[str]:
    alone, rest = row.alone[ALL], row.rest[ALL]
    return [
        row.layer,
        row.format,
        "" if row.own_sqnr_db is None else f"{row.own_sqnr_db:.1f}",
        _percent(alone.embeds_rel_l2),
        _percent(alone.logits_rel_l2),
        _exponent(alone.kl_mean),
        _percent(rest.embeds_rel_l2),
        _exponent(rest.kl_mean),
    ]


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio * 100:.3f} %"


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _describe_all(damages: Damages) -> dict[str, dict[str, float | int | None]]:
    return {bucket: _describe(damage) for bucket, damage in damages.items()}


def _describe(damage: Damage) -> dict[str, float | int | None]:
    return {
        "embeds_rel_l2": damage.embeds_rel_l2,
        "embeds_sqnr_db": damage.embeds_sqnr_db,
        "logits_rel_l2": damage.logits_rel_l2,
        "logits_kl_nats": damage.kl_mean,
        "num_positions": damage.num_positions,
    }
