"""Finished rows of a sensitivity run on the disk, a file a stage, whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.files.json_text import parse_json
from ..files.atomic import write_text
from .damage import Damages, damages_from_json, damages_to_json


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """One layer.

    Attributes:
        layer: a linear, attention products, a cache or a table, as coverage names it.
        part: "vision" or "decoder".
        format: that it was measured in.
        own_sqnr_db: of its own output on calibration rows; None: not a linear layer.
        alone: damage of it alone, by picture size; of embeddings none if it is in the decoder.
        rest: damage of everything but it.
    """

    layer: str
    part: str
    format: str
    own_sqnr_db: float | None
    alone: Damages
    rest: Damages


class RowFolder:
    """Rows by stage; the folder's name holds a hash of all that decides them."""

    def __init__(self, path: Path, *parts: str) -> None:
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        self.path = path.with_name(f"{path.name}-{key}")

    def has(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return (self.path / f"{stage}.json").is_file()

    def save(self, stage: str, rows: Sequence[SensitivityRow]) -> None:
        """Write a stage's rows.

        Raises:
            OSError: the disk is full; nothing half-written is left.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        content = [
            {
                "layer": row.layer,
                "part": row.part,
                "format": row.format,
                "own_sqnr_db": row.own_sqnr_db,
                "alone": damages_to_json(row.alone),
                "rest": damages_to_json(row.rest),
            }
            for row in rows
        ]
        write_text(self.path / f"{stage}.json", json.dumps(content))

    def load(self, stage: str) -> list[SensitivityRow]:
        """Read them back, the same to the last bit.

        Raises:
            ValueError: the file is damaged; says what to remove.
        """
        path = self.path / f"{stage}.json"
        try:
            content = parse_json(path.read_bytes(), "it", with_infinity=True)
            return [
                SensitivityRow(
                    **{
                        **row,
                        "alone": damages_from_json(row["alone"]),
                        "rest": damages_from_json(row["rest"]),
                    }
                )
                for row in content
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, left by an interrupted run, is damaged ({error}): remove {self.path} "
                "and start again"
            ) from error

    def remove(self) -> None:
        """Remove everything: the result is complete."""
        shutil.rmtree(self.path, ignore_errors=True)
