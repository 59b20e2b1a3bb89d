"""The contract of every drawn thing: a picture or a clip, a question, its one right answer."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from sample.glyphs import Glyph

ITEMS = (
    "TEA", "MILK", "BREAD", "EGGS", "RICE", "SOAP", "APPLE", "JUICE",
    "SALT", "CAKE", "FISH", "BEANS", "PEAR", "CORN", "LIME", "PIZZA",
)  # fmt: skip
BAR_NAMES = "ABCDEFGH"
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIAL_STEPS = 10
CHARS = "0123456789.$ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TAGS = (
    *ITEMS,
    "TOTAL",
    *("highest", "lowest", "between"),
    *(f"dial {step}" for step in range(DIAL_STEPS + 1)),
    *WAYS,
    "still",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one picture or clip."""

    task: str
    frames: tuple[Image.Image, ...]  # one for a picture, 2 to 8 for a clip
    glyphs: tuple[tuple[Glyph, ...], ...]  # per frame
    question: str
    answer: str

    @property
    def is_clip(self) -> bool:
        """More than one frame."""
        return len(self.frames) > 1
