"""The file that a fingerprint is kept in, and the differences between two of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1

Scalar = str | int | float | bool | None
Facts = dict[str, Scalar]


class FingerprintError(Exception):
    """Why nothing could be recorded or compared, in one line."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What was recorded.

    Attributes:
        vlmedge: version of the command.
        inputs: SHA-256 of each file that the commands have read, by name.
        parts: part ("plan") -> command line -> name of a fact -> its value.
    """

    vlmedge: str
    inputs: dict[str, str]
    parts: dict[str, dict[str, Facts]]


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write it as JSON, a line for every fact, so that other tools can compare it too."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(fingerprint)}
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def read_fingerprint(path: Path) -> Fingerprint:
    """Read what `record` has written.

    Raises:
        FingerprintError: there is no such file, or it holds something else.
    """
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise FingerprintError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FingerprintError(f"{path} is damaged, record it again: {error}") from None
    if not isinstance(raw, dict) or raw.pop("schema_version", None) != SCHEMA_VERSION:
        raise FingerprintError(
            f"{path} is not a fingerprint of schema version {SCHEMA_VERSION}: record it again"
        )
    if raw.keys() != {"vlmedge", "inputs", "parts"} or not _is_whole(**raw):
        raise FingerprintError(f"{path} is damaged, record it again: a field has another type")
    return Fingerprint(**raw)


def _is_whole(vlmedge: Any, inputs: Any, parts: Any) -> bool:
    if not (isinstance(vlmedge, str) and isinstance(inputs, dict) and isinstance(parts, dict)):
        return False
    if not all(isinstance(runs, dict) for runs in parts.values()):
        return False
    all_facts = [facts for runs in parts.values() for facts in runs.values()]
    return all(isinstance(facts, dict) for facts in all_facts)


def share_parts(old: Fingerprint, new: Fingerprint) -> list[str]:
    """The parts that both hold.

    Raises:
        FingerprintError: there are none, or different versions or inputs were recorded.
    """
    if old.vlmedge != new.vlmedge:
        raise FingerprintError(
            f"recorded from {old.vlmedge} and {new.vlmedge}: every graph and manifest holds the "
            "version, so give both checkouts the same in pyproject.toml"
        )
    names = {**old.inputs, **new.inputs}
    other = [name for name in names if old.inputs.get(name) != new.inputs.get(name)]
    if other:
        raise FingerprintError(
            f"recorded from different samples ({', '.join(other)}): record both by one checkout"
        )
    shared = [part for part in old.parts if part in new.parts]
    if not shared:
        raise FingerprintError(
            f"one holds {', '.join(old.parts)}, the other {', '.join(new.parts)}: "
            "record the same parts"
        )
    return shared


def compare(old: Fingerprint, new: Fingerprint) -> Iterator[str]:
    """Compare the parts that both hold, a line for every difference."""
    for part in share_parts(old, new):
        before, after = old.parts[part], new.parts[part]
        for run in {**before, **after}:
            if run not in after:
                yield f"missing: {run}"
            elif run not in before:
                yield f"added: {run}"
            else:
                yield from (f"{run}: {line}" for line in compare_facts(before[run], after[run]))


def compare_facts(old: Facts, new: Facts) -> Iterator[str]:
    """Differences of one run: by value and type, then by order."""
    for name in {**old, **new}:
        theirs, ours = (json.dumps(facts.get(name)) for facts in (old, new))
        if name not in new:
            yield f"missing: {name} = {theirs}"
        elif name not in old:
            yield f"added: {name} = {ours}"
        elif theirs != ours:  # 1, 1.0 and true are three values
            yield f"{name}: {theirs} -> {ours}"
    if old.keys() == new.keys() and list(old) != list(new):
        first = next(a for a, b in zip(old, new, strict=True) if a != b)
        yield f"in another order, from {first} on"
