"""What is advised is not given yet, and a plan that follows it fits."""

import dataclasses
import itertools
import re

import pytest

from vlmedge.export.planning.advice import free_desktop, list_alternatives
from vlmedge.export.planning.devices import DEVICES, GIB
from vlmedge.export.planning.free_memory import choose_free
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.plan import Request
from vlmedge.export.planning.planner import make_plan

NANO = DEVICES["orin-nano-8gb"]
RESIDENCY = "residency="


def advise(model, board, recipe, request):
    def make(name):
        return make_setup(model, board, name)

    made = make_plan(make(recipe), request)
    found = list_alternatives(made, request, make)
    bare = None if made.fits else free_desktop(made, request)
    return made, found + ([bare] if bare else [])


def follow(option, board, recipe, request):
    """The board, recipe and request with an option's words taken."""
    words = option.split()
    changes = {}
    while words:
        name = words.pop(0)
        if name == "--recipe":
            recipe = words.pop(0)
        elif name == "--headless":
            board = choose_free(NANO, desktop=False, free_gib=None)
        elif name == "--separate-lm-head":
            changes["separate_lm_head"] = True
        else:
            changes[name.strip("-").replace("-", "_")] = int(words.pop(0))
    return board, recipe, dataclasses.replace(request, **changes)


BOARDS = (4.0, 4.5, 5.5, 6.2, None)  # GiB free; None: with a desktop, which may be given up
GIVEN = list(
    itertools.product(
        BOARDS, (None, "orin", "accurate"), (1, 4, 28), (False, True), (None, 602112), (None, 2048)
    )
)


@pytest.mark.parametrize("free_gib", BOARDS)
def test_advice_is_never_what_is_given_and_always_fits(model, free_gib):
    opened = model()
    seen = set()
    for free, recipe, split, separate, max_pixels, context in GIVEN:
        if free != free_gib:
            continue
        board = choose_free(NANO, desktop=None, free_gib=free)
        request = Request(
            split=split, separate_lm_head=separate, max_pixels=max_pixels, context=context
        )
        made, found = advise(opened, board, recipe, request)
        for alternative in found:
            option = alternative.option
            case = (free, recipe, request, option)
            if option.startswith(RESIDENCY):
                continue
            seen.update(re.findall(r"--[\w-]+", option))
            assert option, case
            assert not (separate and "--separate-lm-head" in option), case
            for name, value in (("split", split), ("max-pixels", max_pixels), ("context", context)):
                assert f"--{name} {value} " not in f"{option} ", case
            assert f"--recipe {recipe} " not in f"{option} ", case
            new_board, new_recipe, new_request = follow(option, board, recipe, request)
            again = make_plan(make_setup(opened, new_board, new_recipe), new_request)
            if "together with one graph in memory at a time" in alternative.text:
                assert again.build is None or again.build.fits, case
                assert again.run_one_graph <= again.run.free_bytes, case
            else:
                assert again.fits, case
        for note in made.notes:
            assert not (separate and "--separate-lm-head" in note), note
    assert {"--max-pixels", "--context"} <= seen


def test_the_lm_head_is_not_to_be_taken_apart_again(model):
    board = choose_free(NANO, desktop=False, free_gib=None)
    for separate in (False, True):
        request = Request(split=4, separate_lm_head=separate)
        made, _ = advise(model(), board, "float", request)
        told = [note for note in made.notes if "lm_head" in note]
        assert len(told) == 1
        assert ("--separate-lm-head" in told[0]) != separate
        assert "cma=950M" in told[0]


def test_a_board_without_its_desktop_is_advised_where_that_helps(model):
    board = choose_free(NANO, desktop=None, free_gib=None)
    made, found = advise(model(), board, "accurate", Request())
    assert not made.fits
    assert "--headless" in [alternative.option for alternative in found]
    given = choose_free(NANO, desktop=None, free_gib=board.free_bytes / GIB)
    made, found = advise(model(), given, "accurate", Request())
    assert "--headless" not in [alternative.option for alternative in found]


def test_pictures_that_the_budget_shrinks_are_told_of(model):
    for size, is_told in (((4000, 3000), True), ((1000, 700), False)):
        made, _ = advise(model(), NANO, "orin", Request(*size))
        notes = [note for note in made.notes if "shrunk" in note]
        assert bool(notes) == is_told
        if is_told:
            seen = made.prompt.visuals[0]
            assert f"pictures of 4000x3000 are shrunk to {seen.width}x{seen.height}" in notes[0]
