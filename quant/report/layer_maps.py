"""Draw numbers of layers by picture size, one heat map for each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .heat_map import heat_legend, heat_map
from .layer_axis import split_layer
from .page import Figure
from .plots import draw_twice
from .svg import NARROW_WIDTH

Values = Mapping[tuple[str, str], float | None]  # (layer, picture size) -> what was measured


@dataclass(frozen=True, slots=True)
class Shading:
    """How values become shades, alike in all maps of a section; see `heat_map`."""

    unit: str
    better: Literal["higher", "lower"] = "lower"
    is_log: bool = False
    scale: tuple[float, float] | None = None


def draw_layer_maps(
    values: Values, layers: Sequence[str], buckets: Sequence[str], shading: Shading, what: str
) -> list[Figure]:
    """A figure for each stack of blocks, with a map a kind, and one for the layers of no block.

    Args:
        values: of layers and picture sizes; one that is missing, or None, is left blank.
        layers: names, in the order of the model.
        buckets: picture sizes, in order.
        shading: of all maps.
        what: is measured, for the captions: "own SQNR in dB".
    """
    stacks: dict[str, dict[str, dict[int, str]]] = {}  # stack -> kind -> block -> layer
    single: list[str] = []
    for name in layers:
        if split := split_layer(name):
            stacks.setdefault(split[0], {}).setdefault(split[2], {})[split[1]] = name
        else:
            single.append(name)
    figures = []
    for stack, kinds in stacks.items():
        members = [name for blocks in kinds.values() for name in blocks.values()]
        present = _list_present(values, members, buckets)
        panels = [
            _draw_panel(values, blocks, present, shading, short_kind(kind, list(kinds)), stack)
            for kind, blocks in kinds.items()
        ]
        legend = heat_legend(
            [[values.get((name, b)) for b in present] for name in members],
            shading.unit,
            better=shading.better,
            is_log=shading.is_log,
            scale=shading.scale,
        )
        drawn = f'<div class="maps"><div class="panels">{"".join(panels)}</div>{legend}</div>'
        figures.append(Figure(drawn, f"{stack}: {what}, by block and picture size."))
    if single:
        present = _list_present(values, single, buckets)
        figures.append(_draw_single(values, single, present, shading, what))
    return figures


def short_kind(kind: str, kinds: Sequence[str]) -> str:
    """self_attn.o_proj -> o_proj, unless another kind ends the same."""
    last = kind.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in kinds) == 1 else kind


def _list_present(values: Values, layers: Sequence[str], buckets: Sequence[str]) -> list[str]:
    return [b for b in buckets if any((name, b) in values for name in layers)]


def _draw_panel(
    values: Values,
    blocks: Mapping[int, str],
    buckets: Sequence[str],
    shading: Shading,
    kind: str,
    stack: str,
) -> str:
    """One kind of layer: a row for each block, a column for each picture size."""
    order = sorted(blocks)
    return heat_map(
        [str(block) for block in order],
        buckets,
        [[values.get((blocks[block], b)) for b in buckets] for block in order],
        shading.unit,
        better=shading.better,
        is_log=shading.is_log,
        scale=shading.scale,
        width=NARROW_WIDTH,
        title=kind,
        full_names=[blocks[block] for block in order],
        has_legend=False,
        label=f"{stack}, {kind}: by block and picture size",
    )


def _draw_single(
    values: Values, layers: Sequence[str], buckets: Sequence[str], shading: Shading, what: str
) -> Figure:
    rows = [[values.get((name, b)) for b in buckets] for name in layers]
    wide, narrow = draw_twice(
        lambda width: heat_map(
            layers,
            buckets,
            rows,
            shading.unit,
            better=shading.better,
            is_log=shading.is_log,
            scale=shading.scale,
            width=width,
            label=f"The layers of no block: {what}, by picture size",
        )
    )
    return Figure(wide, f"The other layers: {what}, by layer and picture size.", narrow)
