"""Record where a setting of a checkpoint came from: the file, the key, or a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting as it was resolved.

    Attributes:
        setting: its name in the bundle, "pixels.max_pixels".
        value: as resolved.
        file: "processor_config.json"; None: no file says it, and transformers' default holds.
        key: in that file, dotted: "image_processor.size.longest_edge".
    """

    setting: str
    value: Any
    file: str | None = None
    key: str | None = None

    @property
    def place(self) -> str:
        """The file and key in words."""
        if self.file is None:
            return "default of transformers"
        return self.file if self.key is None else f"{self.file}: {self.key}"


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a reader found.

    Attributes:
        value: the contract object that goes into the bundle.
        origins: of each part of it.
        unusual: remarks for a person, a line each: unknown keys, files that contradict each other
            where transformers' order decides.
    """

    value: T
    origins: tuple[Origin, ...] = ()
    unusual: tuple[str, ...] = ()
