"""What is offered fits, and the next larger does not."""

import dataclasses

import pytest

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.fit import (
    _largest,
    find_context,
    find_picture,
    find_recipe,
    find_residency,
    find_split,
    fits,
    runs,
)
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.plan import Request
from vlmedge.export.planning.planner import make_plan, make_prompt, plan_build
from vlmedge.export.planning.precision import FLOAT, list_recipes
from vlmedge.export.planning.sources import open_model

NANO = DEVICES["orin-nano-8gb"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def tight(model):
    """(free MiB, recipe) -> the 2B on a Nano that has no more."""

    def make(free_mib, recipe="orin"):
        board = dataclasses.replace(NANO, free_bytes=free_mib * MIB)
        return make_setup(model(), board, recipe)

    return make


def read_option(alternative):
    return int(alternative.option.split()[1])


@pytest.mark.parametrize("holds", range(-1, 12))
def test_the_largest_is_found_by_halving(holds):
    found = _largest(lambda n: n <= holds, 2, 10)
    assert found == (min(holds, 10) if holds >= 2 else None)
    assert _largest(lambda n: True, 5, 4) is None


def test_the_largest_picture_fits_and_the_next_does_not(tight):
    setup, request = tight(3150), Request(4000, 3000, num_images=1)
    assert not runs(setup, request)
    found = find_picture(setup, request)
    assert found is not None
    limit = read_option(found)
    assert runs(setup, dataclasses.replace(request, max_pixels=limit))
    assert not runs(setup, dataclasses.replace(request, max_pixels=limit + 3 * 28 * 28))
    seen = make_prompt(setup, dataclasses.replace(request, max_pixels=limit)).visuals[0]
    assert f"{seen.width}x{seen.height}, {seen.num_tokens} tokens" in found.text


def test_a_small_picture_is_told_how_large_it_could_be(tight):
    found = find_picture(tight(6000), Request(100, 100))
    assert found is not None
    assert read_option(found) == 1280 * 28 * 28  # the model's own limit
    assert "1000" not in found.text
    assert "980x980" in found.text


def test_a_clip_stays_as_it_is_while_pictures_grow(tight):
    alone = find_picture(tight(6000), Request(100, 100))
    beside = find_picture(tight(6000), Request(100, 100, video_s=8))
    assert alone == beside


def test_no_picture_is_offered_where_none_is_asked_for_or_none_fits(tight):
    assert find_picture(tight(6000), Request(num_images=0)) is None
    assert find_picture(tight(100), Request()) is None


def test_the_longest_context_fits_and_the_next_does_not(tight):
    setup, request = tight(3500), Request()
    found = find_context(setup, request)
    assert found is not None
    tokens = read_option(found)
    assert 1600 < tokens < 32768
    assert tokens % 64 == 0
    assert runs(setup, dataclasses.replace(request, context=tokens))
    assert not runs(setup, dataclasses.replace(request, context=tokens + 64))


def test_the_longest_context_is_the_models_where_memory_is_plenty(tight):
    found = find_context(tight(100_000), Request())
    assert found is not None
    assert read_option(found) == 32768
    assert find_context(tight(100), Request()) is None


def test_no_context_is_offered_where_the_graph_fixes_it(lowered):
    for target, offered in (("jetpack-6.2", True), ("jetpack-7.2", False)):
        setup = make_setup(open_model(lowered("float", target).bundle), NANO)
        assert (find_context(setup, Request(56, 56)) is not None) == offered


def test_one_graph_at_a_time_is_offered_only_where_it_helps(tight):
    """All together take the ViT's weights more, as the decoder's are the larger."""
    for free, offered in ((6000, False), (2900, True), (1500, False)):
        setup = tight(free)
        plan = make_plan(setup, Request())
        assert plan.run.nbytes - plan.run_one_graph == setup.weights["vision"]
        assert (find_residency(plan) is not None) == offered
        assert offered == (plan.run_one_graph <= free * MIB < plan.run.nbytes)


def test_clips_are_a_third_graph_that_takes_its_turn(tight):
    setup = tight(6000)
    plan = make_plan(setup, Request(video_s=8))
    assert plan.run.nbytes - plan.run_one_graph == 2 * setup.weights["vision"]


def test_the_fewest_parts_are_found(tight):
    setup = tight(8000, None)
    assert not fits(setup, Request())
    found = find_split(setup, Request())
    assert found is not None
    assert found.option == "--split 2"
    assert fits(setup, Request(split=2))
    assert find_split(tight(100, None), Request()) is None


def test_the_head_is_taken_apart_where_parts_alone_do_not_help(tight):
    """Nothing is smaller than a layer with the head; apart, the ViT decides."""
    setup = tight(5560, None)  # the ViT's 1269 MiB 3.3 times, and what every build takes
    found = find_split(setup, Request())
    assert found is not None
    assert fits(tight(10**6, None), Request())
    parts = int(found.option.split()[1])
    separate = "--separate-lm-head" in found.option
    build = plan_build(setup, Request(split=parts, separate_lm_head=separate))
    assert build is not None
    assert build.fits


def test_the_finest_recipe_that_fits_is_found(model):
    board = dataclasses.replace(NANO, free_bytes=4600 * MIB)

    def make(name):
        return make_setup(model(), board, name)

    found = find_recipe(Request(), [FLOAT, *list_recipes()], make)
    assert found is not None
    chosen = found.option.split()[1]
    assert chosen not in ("float", "thor")  # too large, refused on an Orin
    sizes = {}
    for name in ("accurate", "cpu", "orin", "smallest"):
        setup = make(name)
        if runs(setup, Request()) and find_split(setup, Request()):
            sizes[name] = sum(setup.weights.values())
    assert chosen == max(sizes, key=lambda name: sizes[name])


def test_no_recipe_is_offered_where_none_fits(model):
    board = dataclasses.replace(NANO, free_bytes=1000 * MIB)
    recipes = [FLOAT, *list_recipes()]
    assert find_recipe(Request(), recipes, lambda n: make_setup(model(), board, n)) is None
