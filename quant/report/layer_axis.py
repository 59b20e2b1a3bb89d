"""Label layers under a plot, each by itself where there is room, else by its block's number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .svg import CHAR_WIDTH, Axis, element

NAME_STEP = 13  # pixels that a name turned upright needs
LABEL_STEP = 24  # and a block's number
TIERS_HEIGHT = 42
_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")  # visual.blocks, 3, mlp.fc2


def split_layer(name: str) -> tuple[str, int, str] | None:
    """visual.blocks.3.mlp.fc2 -> ("visual.blocks", 3, "mlp.fc2"); None for a layer of no block."""
    match = _BLOCK.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def measure_layer_axis(names: Sequence[str], width: float) -> float:
    """Height that the names take under a plot of so many pixels."""
    if has_room(len(names), width):
        return 14 + 0.93 * CHAR_WIDTH * max(map(len, names))
    return TIERS_HEIGHT


def has_room(count: int, width: float) -> bool:
    """Whether every name can stand under its layer."""
    return count > 0 and width / count >= NAME_STEP


def draw_layer_axis(names: Sequence[str], x: Axis, y: float) -> list[str]:
    """The names, from `y` downwards; layer i is at x.pixel(i)."""
    if has_room(len(names), x.last - x.first):
        return [_draw_upright(name, x.pixel(i), y + 8) for i, name in enumerate(names)]
    return _draw_tiers(names, x, y)


def _draw_upright(name: str, at: float, y: float) -> str:
    turned = f"rotate(-90 {at + 4:.1f} {y:.1f})"
    return element("text", name, class_="label end", x=at + 4, y=y, transform=turned)


def _draw_tiers(names: Sequence[str], x: Axis, y: float) -> list[str]:
    """Numbers of blocks, and under them what they are blocks of."""
    parts: list[str] = []
    stacks: dict[str, list[int]] = {}
    seen: set[tuple[str, int]] = set()
    last = float("-inf")
    for index, name in enumerate(names):
        split = split_layer(name)
        stack = split[0] if split else name
        stacks.setdefault(stack, []).append(index)
        if split is None or split[:2] in seen:
            continue
        seen.add(split[:2])
        at = x.pixel(index)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=y, y2=y + 4))
        if at - last >= LABEL_STEP:
            parts.append(element("text", str(split[1]), class_="label", x=at, y=y + 16))
            last = at
    taken: list[tuple[float, float]] = []
    # Stacks of blocks before single layers, which are named where there is room left
    for stack, indices in sorted(stacks.items(), key=lambda item: -len(item[1])):
        first, end = x.pixel(indices[0]), x.pixel(indices[-1])
        width = CHAR_WIDTH * len(stack)
        start = max(min(first, x.last + 8 - width), 0)
        if any(start < stop + 8 and begin < start + width + 8 for begin, stop in taken):
            continue
        taken.append((start, start + width))
        end = max(end, first + 2)
        parts.append(element("line", class_="zero", x1=first, x2=end, y1=y + 21, y2=y + 21))
        parts.append(element("text", stack, class_="label", x=start, y=y + 35))
    return parts
