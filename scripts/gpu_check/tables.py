"""Figures -> Markdown, as docs/benchmarks.md holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import Row
from .precisions import PRECISIONS
from .record import StepRecord

PEER = "transformers fp16"


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    lines = [_join(head), _join(["---"] + ["---:"] * (len(head) - 1))]
    return "\n".join([*lines, *(_join(row) for row in rows)])


def make_times_table(rows: Sequence[Row], prompt_tokens: int) -> str:
    """Milliseconds and tokens a second."""
    sides = sorted({side for row in rows for side in row.vision_ms})
    head = [
        "engine",
        *(f"ViT {side}x{side} ms" for side in sides),
        f"prefill {prompt_tokens} ms",
        "prefill tok/s",
        "decode ms",
        "decode tok/s",
    ]
    cells = [
        [
            row.name,
            *(_number(row.vision_ms.get(side), 2) for side in sides),
            _number(row.prefill_ms, 2),
            _number(row.prefill_ms and 1000 * prompt_tokens / row.prefill_ms, 0),
            _number(row.decode_ms, 3),
            _number(row.decode_ms and 1000 / row.decode_ms, 1),
        ]
        for row in rows
    ]
    return make_table(head, cells)


def make_shares_table(rows: Sequence[Row]) -> str:
    """Shares of the ceilings, and how many times as fast as transformers."""
    sides = sorted({side for row in rows for side in row.vision_ms})
    peer = next((row for row in rows if row.name == PEER), None)
    head = [
        "engine",
        *(f"ViT {side} / matrix rate" for side in sides),
        "prefill / matrix rate",
        "decode / bandwidth",
        *(f"ViT {side} x transformers" for side in sides),
        "prefill x",
        "decode x",
    ]
    cells = []
    for row in rows:
        times = [
            *(_ratio(peer and peer.vision_ms.get(side), row.vision_ms.get(side)) for side in sides),
            _ratio(peer and peer.prefill_ms, row.prefill_ms),
            _ratio(peer and peer.decode_ms, row.decode_ms),
        ]
        shares = [
            *(_number(row.vision_share.get(side), 2) for side in sides),
            _number(row.prefill_share, 2),
            _number(row.decode_share, 2),
        ]
        cells.append([row.name, *shares, *times])
    return make_table(head, cells)


def make_comparison_table(records: Mapping[str, StepRecord]) -> str:
    """Engines against ONNX Runtime, on the sample."""
    rows = []
    for name in PRECISIONS:
        record = records.get(f"sample.{name}.compare")
        if record is None or "tokens" not in record.figures:
            continue
        figures = record.figures
        rows.append(
            [
                name,
                f"{figures['image_embeds_error']:.2g}",
                f"{figures['logits_error']:.2g}",
                f"{figures['limit']:g}",
                f"{figures['equal_tokens']} of {figures['tokens']}",
                "yes" if record.status == "ok" else "**no**",
            ]
        )
    return make_table(
        ("engines", "image embeddings", "logits", "allowed", "equal tokens", "within"), rows
    )


def make_engines_table(records: Mapping[str, StepRecord]) -> str:
    """What was built, in how long."""
    rows = []
    for step, record in records.items():
        if not step.endswith(".engines") or record.status != "ok":
            continue
        for built_for, made in record.figures.items():
            title = [step.removesuffix(".engines"), built_for]
            if "refused" in made:
                rows.append([*title, "refused, as it must be", "", ""])
                continue
            rows.append(
                [
                    *title,
                    _number(sum(made["bytes"].values()) / 2**20, 1),
                    _number(sum(made["seconds"].values()), 1),
                    _number(made["peak_bytes"] / 2**20, 0),
                ]
            )
    return make_table(("bundle", "built for", "MiB", "seconds", "peak memory MiB"), rows)


def make_ceilings_table(figures: Mapping[str, Any]) -> str:
    """Bandwidth and rates."""
    rows = [
        [f"copy on the device, {method}", f"{rate / 1e9:,.0f} GB/s"]
        for method, rate in figures["bytes_per_s"].items()
    ]
    rows += [
        [f"matrix product, {name}", f"{rate / 1e12:,.0f} T/s"]
        for name, rate in figures["flops_per_s"].items()
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in figures["errors"].items()]
    return make_table(("ceiling", "measured"), rows)


def make_steps_table(records: Mapping[str, StepRecord], names: Sequence[str]) -> str:
    """What did not come out, each with its reason; steps without a record have not run."""
    rows = []
    for name in names:
        record = records.get(name)
        if record is None:
            rows.append([name, "not run", ""])
        elif record.status != "ok":
            rows.append([name, record.status, record.reason.replace("|", "/")[:400]])
    return make_table(("step", "status", "reason"), rows) if rows else ""


def _join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "" if not value else f"{value:,.{digits}f}"


def _ratio(peer: float | None, ours: float | None) -> str:
    return "" if not peer or not ours else f"{peer / ours:.2f}"
