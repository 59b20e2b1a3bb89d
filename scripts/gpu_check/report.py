"""All records of a check -> one JSON object and one Markdown page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bundles import find_checkpoint
from .config import Config
from .figures import Row, make_rows
from .plan import Step
from .record import StepRecord, read_record
from .tables import (
    make_ceilings_table,
    make_comparison_table,
    make_engines_table,
    make_shares_table,
    make_steps_table,
    make_times_table,
)


def read_records(work: Path, steps: Sequence[Step]) -> dict[str, StepRecord]:
    """Of the steps that have one, in order."""
    found = {step.name: read_record(work, step.name) for step in steps}
    return {name: record for name, record in found.items() if record is not None}


def make_timed_rows(config: Config, records: dict[str, StepRecord]) -> list[Row]:
    """Speed at full size; none before there is a checkpoint."""
    from vlmedge.export.checkpoint.config import read_model_spec

    figures = {name: record.figures for name, record in records.items() if record.status == "ok"}
    if "checkpoint" not in figures:
        return []
    spec = read_model_spec(find_checkpoint(config, "model"))
    return make_rows(figures, spec, config.prompt_tokens)


def make_json(config: Config, steps: Sequence[Step]) -> dict[str, Any]:
    """Everything."""
    records = read_records(config.work, steps)
    settings = dataclasses.asdict(config) | {"work": config.work.name, "pack": config.pack.name}
    return {
        "settings": settings,
        "rows": [dataclasses.asdict(row) for row in make_timed_rows(config, records)],
        "steps": {name: dataclasses.asdict(record) for name, record in records.items()},
        "not_run": [step.name for step in steps if step.name not in records],
    }


def make_markdown(config: Config, steps: Sequence[Step]) -> str:
    """Tables; what there are no figures for is left out, and named at the end."""
    records = read_records(config.work, steps)
    parts = [describe_machine(config, records)]
    if "ceilings" in records and records["ceilings"].status == "ok":
        parts.append(make_ceilings_table(records["ceilings"].figures))
    if "probe" in records:
        parts.append(describe_probe(records["probe"]))
    if any(name.endswith(".compare") and record.figures for name, record in records.items()):
        parts.append("Engines against ONNX Runtime on the CPU, the sample reader; relative L2:")
        parts.append(make_comparison_table(records))
    if any(name.endswith(".engines") and r.status == "ok" for name, r in records.items()):
        parts.append(make_engines_table(records))
    if rows := make_timed_rows(config, records):
        parts.append(
            f"Size {config.size} with random weights, {config.prompt_tokens} tokens in the cache "
            f"(of {config.context}) when decoding; medians:"
        )
        parts += [make_times_table(rows, config.prompt_tokens), make_shares_table(rows)]
    if failed := make_steps_table(records, [step.name for step in steps]):
        parts += ["What has no result:", failed]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_machine(config: Config, records: dict[str, StepRecord]) -> str:
    """The device, versions and commit, as figures must name them."""
    record = records.get("machine")
    if record is None or record.status != "ok":
        return "The machine is unknown."
    found = record.figures
    gpu = found["gpu"]
    device = (
        f"{gpu['name']} (sm {gpu['sm']}, {gpu['memory_gib']} GiB), driver {found['driver']}"
        if gpu
        else "no GPU (a dry run: engines were built, none has run)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    missing = "".join(f"; without {name}" for name in found["missing"])
    return (
        f"Device: {device}; {found['num_cpus']} x {found['cpu']}, {found['memory_gib']} GiB.\n"
        f"Versions: vlmedge {found['commit'] or 'without history'}, Python {found['python']}, "
        f"{versions}{missing}."
    )


def describe_probe(record: StepRecord) -> str:
    """Whether TensorRT-RTX runs here at all."""
    if record.status == "skipped":
        return ""
    if record.status != "ok":
        return f"**TensorRT-RTX gave no result on this GPU**: {record.reason}"
    tried = "".join(
        f" {name} did not run ({why})." for name, why in record.figures["tried"].items()
    )
    return (
        f"TensorRT-RTX {record.figures['version']} runs here with engines built for "
        f"`{record.figures['target']}`.{tried}"
    )
