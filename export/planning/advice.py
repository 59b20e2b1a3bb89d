"""Suggest what may be changed so that a plan fits, as options that are not given yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .devices import GIB
from .fit import (
    Alternative,
    find_context,
    find_picture,
    find_recipe,
    find_residency,
    find_split,
    fits,
)
from .placement import Setup
from .plan import Plan, Request
from .precision import FLOAT, list_recipes


def list_alternatives(
    made: Plan, request: Request, make: Callable[[str | None], Setup]
) -> list[Alternative]:
    """What fits: picture and context; where it doesn't, also parts of a build, and a recipe.

    Each one is complete: with its options, beside those that were given, the plan fits. The one
    exception is one graph at a time, which is no option of a plan: what needs it says so.
    """
    setup = made.setup
    found: list[Alternative | None] = []
    is_built = made.build is None or made.build.fits
    parts = None if is_built else find_split(setup, request)
    if is_built or parts is not None:
        for each in (find_picture(setup, request), find_context(setup, request)):
            found.append(each if each is None or is_built else _join(each, parts))
    found.append(find_residency(made))
    runs_in_turn = made.run_one_graph <= made.run.free_bytes
    if runs_in_turn and parts is not None:
        turns = "" if made.run.fits else ", together with one graph in memory at a time"
        found.append(Alternative(parts.option, parts.text + turns))
    is_only_built_whole = made.run.fits and parts is not None and not made.prompt.problem
    if not made.fits and not is_only_built_whole and setup.model.precision is None:
        found.append(find_recipe(request, [FLOAT, *list_recipes()], make))
    return [each for each in found if each is not None and each.option]


def free_desktop(made: Plan, request: Request) -> Alternative | None:
    """The same on a board without its desktop, where that fits."""
    device = made.setup.device
    if not device.desktop_bytes:
        return None
    bare = dataclasses.replace(device, free_bytes=device.free_bytes + device.desktop_bytes)
    if not fits(dataclasses.replace(made.setup, device=bare), request):
        return None
    return Alternative(
        "--headless", f"without its desktop {bare.free_bytes / GIB:.1f} GiB are free"
    )


def _join(one: Alternative, parts: Alternative | None) -> Alternative:
    """Two changes that are needed together."""
    if parts is None:
        return one
    return Alternative(f"{one.option} {parts.option}", f"{one.text}; {parts.text}")
