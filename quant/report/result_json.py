"""Read and write report.json: a check's findings and verdict for sweeps and other programs.

One finding a line, so that the file can be looked at and two of them compared. JSON has no NaN and
no infinity: both are null in it, and null is read back as NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ...runtime.files.json_text import parse_json
from ...runtime.files.regular_file import read_regular_text
from ...runtime.files.strict import read_strict
from ..compare.findings import CheckResult
from ..gate.unusual import find_unusual
from ..gate.verdict import Verdict

SCHEMA_VERSION = 2


def to_json(result: CheckResult, verdict: Verdict | None = None) -> str:
    """The text of report.json; without a verdict `passed` and `state` are null."""
    unusual = verdict.unusual if verdict else find_unusual(result.layers)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "passed": verdict.passed if verdict else None,
        "state": verdict.state if verdict else None,
        "gate": verdict.gate if verdict else None,
        "limits": [dataclasses.asdict(row) for row in verdict.rows] if verdict else [],
        "guilty": [dataclasses.asdict(finding) for finding in verdict.guilty] if verdict else [],
        "unusual": [dataclasses.asdict(finding) for finding in unusual],
        "blames": [dataclasses.asdict(blame) for blame in verdict.blames] if verdict else [],
        "result": dataclasses.asdict(result),
    }
    return _dump(_finite(report), "") + "\n"


def parse_result(text: str, name: str = "report.json") -> CheckResult:
    """What `to_json` wrote -> the findings in it; `name` is for errors.

    Raises:
        ValueError: no report of ours, or of another schema version; names the key that is wrong.
    """
    report = parse_json(text, name)
    if not isinstance(report, dict) or not isinstance(report.get("result"), dict):
        raise ValueError(f"{name} is no report of a check: it has no object 'result'")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{name} has schema version {report.get('schema_version')!r:.20}, "
            f"needed {SCHEMA_VERSION}: check again with this version of vlmedge"
        )
    result: dict[str, Any] = report["result"]
    sections = {
        key: get_args(kind)[0]
        for key, kind in get_type_hints(CheckResult).items()
        if get_origin(kind) is tuple and key in result
    }
    plain = {key: value for key, value in result.items() if key not in sections}
    read = {
        key: _read_findings(result[key], kind, f"{name}: result.{key}")
        for key, kind in sections.items()
    }
    return dataclasses.replace(read_strict(plain, CheckResult, f"{name}: result"), **read)


def read_result(path: str | Path) -> CheckResult:
    """Read the findings of a report.json.

    Raises:
        ValueError: as parse_result, or no such file.
    """
    path = Path(path)
    try:
        return parse_result(read_regular_text(path), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _dump(value: Any, indent: str) -> str:
    """Objects a key a line down to lists; of these an item a line, however deep it is."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(str(k))}: {_dump(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        lines = [json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value]
        return "[\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _read_findings(values: Any, kind: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{where} is {values!r:.60}, needed a list")
    return tuple(_read_finding(value, kind, f"{where}[{i}]") for i, value in enumerate(values))


def _read_finding(value: Any, kind: Any, where: str) -> Any:
    """read_strict knows no NaN: 0 takes its place while the types are checked."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r:.60}, needed an object")
    filled: dict[str, Any] = dict(value)
    holed: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        item = value.get(name, 0.0)
        if hint is float and item is None:
            filled[name], holed[name] = 0.0, math.nan
        elif hint == tuple[float, ...] and isinstance(item, list) and None in item:
            filled[name] = [0.0 if number is None else number for number in item]
            holed[name] = [number is None for number in item]
    finding = read_strict(filled, kind, where)
    for name, holes in holed.items():
        if isinstance(holes, list):
            numbers = zip(holes, getattr(finding, name), strict=True)
            holed[name] = tuple(math.nan if hole else number for hole, number in numbers)
    return dataclasses.replace(finding, **holed) if holed else finding
