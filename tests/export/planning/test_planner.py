"""Whole plans: what is added up, what fits, and that more never takes less."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.memory import MemoryPart
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.plan import Budget, Request
from vlmedge.export.planning.planner import make_plan, make_prompt, plan_run
from vlmedge.export.planning.roofline import Factors
from vlmedge.export.planning.this_machine import Found, recognize
from vlmedge.export.planning.work import Call, list_decoder, sum_flops

NANO, AGX, THOR = (DEVICES[name] for name in ("orin-nano-8gb", "agx-orin-64gb", "thor"))
CPU = recognize(Found("", "MemTotal: 25000000 kB\nMemAvailable: 24000000 kB\n"))


@pytest.fixture(scope="module")
def setups(model):
    """(device, recipe) -> the 2B there."""
    made = {}

    def make(device, recipe=None, **options):
        key = (device.name, recipe, *options.items())
        if key not in made:
            made[key] = make_setup(model(), device, recipe, **options)
        return made[key]

    return make


def test_2b_in_int4_fits_a_nano_and_in_bfloat16_one_graph_at_a_time(setups):
    assert make_plan(setups(NANO, "orin"), Request()).fits
    plan = make_plan(setups(NANO), Request())
    assert [problem.split(" takes ")[0] for problem in plan.problems] == [
        "running",
        "building the engines",
    ]
    assert plan.run_one_graph < NANO.free_bytes < plan.run.nbytes
    assert make_plan(setups(NANO), Request(split=2)).build.fits


def test_7b_does_not_fit_a_nano_but_a_thor(model):
    plan = make_plan(make_setup(model("7b"), NANO), Request())
    assert not plan.fits
    assert not plan.run.fits
    assert "MiB too many" in plan.problems[0]
    assert make_plan(make_setup(model("7b"), THOR), Request()).fits


def test_the_parts_add_up_to_what_is_compared(setups):
    plan = make_plan(setups(AGX, "orin"), Request(num_images=2, video_s=30))
    for budget in (plan.run, plan.build):
        assert budget is not None
        assert budget.nbytes == sum(part.nbytes for part in budget.parts)
        assert all(part.nbytes >= 0 for part in budget.parts)
    exact = {part.name: part.nbytes for part in plan.run.parts if part.kind == "exact"}
    assert exact["KV cache"] == 28_672 * plan.prompt.capacity
    assert exact["ViT weights"] == exact["ViT weights again, for clips"]


@pytest.mark.parametrize(("nbytes", "fits"), [(100, True), (101, False)])
def test_a_budget_fits_to_the_byte(nbytes, fits):
    assert Budget((MemoryPart("a", nbytes, "exact"),), 100).fits == fits


def test_the_answers_numbers_come_from_the_phases(setups):
    plan = make_plan(setups(AGX), Request(num_images=2), Factors(1.0, 1.0, 0.0))
    vit, prefill, decode = plan.costs
    assert [cost.name for cost in plan.costs] == ["ViT", "prefill", "decode"]
    assert plan.first_token_s == pytest.approx(vit.seconds + prefill.seconds)
    assert plan.tokens_per_s == pytest.approx(1 / decode.seconds)
    # A perfect AGX reads 204.8 GB/s: no token can be faster than its weights are read
    weights = sum(setups(AGX).weights.values()) - setups(AGX).weights["vision"]
    assert plan.tokens_per_s < 204.8e9 / weights
    assert plan.tokens_per_s > 0.7 * 204.8e9 / weights


def test_two_pictures_are_twice_the_vit_and_a_clip_its_pairs(setups):
    setup = setups(AGX)
    one, two = (make_plan(setup, Request(num_images=n)).costs[0] for n in (1, 2))
    assert (two.flops, two.nbytes) == (2 * one.flops, 2 * one.nbytes)
    assert make_plan(setup, Request(num_images=0)).costs[0].flops == 0
    clip = make_plan(setup, Request(num_images=0, video_s=4))
    assert clip.prompt.visuals[0].grid.t == 4
    assert clip.costs[0].flops > 0


def test_a_batch_decodes_faster_together_and_its_cache_grows(setups):
    one, four = (make_plan(setups(AGX), Request(batch=n)) for n in (1, 4))
    assert one.tokens_per_s is not None
    assert four.tokens_per_s is not None
    assert one.tokens_per_s < four.tokens_per_s <= 4 * one.tokens_per_s
    assert four.run.nbytes > one.run.nbytes
    for few, many in zip(one.costs[:2], four.costs[:2], strict=True):  # one after another
        assert many.flops == 4 * few.flops


def test_prefill_is_the_prompt_in_calls(setups):
    setup = setups(THOR)
    request = Request(num_images=0, num_text_tokens=1000, num_new_tokens=5, context=2048)
    plan = make_plan(setup, request)
    assert plan.prompt.num_prompt_tokens == 1019
    calls = [Call(1, 512, 2048), Call(1, 507, 2048)]
    wanted = sum(sum_flops(list_decoder(setup.costing, call)) for call in calls)
    assert plan.costs[1].flops == wanted


def test_a_prompt_that_is_too_long_is_a_problem(setups):
    plan = make_plan(setups(AGX, "orin"), Request(num_images=30))
    assert not plan.fits
    assert "the model's context holds 32768" in plan.problems[0]


def test_a_cpu_has_a_memory_plan_only(setups):
    plan = make_plan(setups(CPU, "cpu"), Request(video_s=4))
    assert plan.fits
    assert plan.build is None
    assert plan.first_token_s is None
    assert plan.tokens_per_s is None
    assert any("no times" in note for note in plan.notes)
    assert not any("again, for clips" in part.name for part in plan.run.parts)


def test_a_gpu_with_its_own_memory_holds_nothing_of_the_host(setups):
    gpu = recognize(
        Found("", "MemTotal: 9 kB\nMemAvailable: 9 kB\n", "NVIDIA L4, 8.9, 23034, 22000")
    )
    plan = make_plan(setups(gpu), Request())
    names = {part.name for part in plan.run.parts}
    assert names == {part.name for part in make_plan(setups(AGX), Request()).run.parts} - {
        "embedding rows in use",
        "Python process",
    }
    assert plan.build is None
    assert plan.fits


def test_scores_are_counted_where_they_are_asked_for(setups):
    board = dataclasses.replace(NANO, name="more", free_bytes=7500 << 20)
    plan = make_plan(setups(board), Request())
    counted = make_plan(setups(board, None, count_scores=True), Request())
    assert counted.run.nbytes == plan.run_with_scores > plan.run.nbytes
    assert counted.run_with_scores == counted.run.nbytes
    assert plan.run.fits
    assert not counted.run.fits
    assert any("does not fuse" in note for note in plan.notes)
    roomy = make_plan(setups(AGX), Request())
    assert not any("does not fuse" in note for note in roomy.notes)


def test_a_nano_is_warned_of_the_heads_piece_and_an_agx_is_not(setups):
    def notes(device):
        return [n for n in make_plan(setups(device), Request()).notes if "in one piece" in n]

    assert len(notes(NANO)) == 1
    assert "--separate-lm-head" in notes(NANO)[0]
    assert notes(AGX) == []


@given(
    st.integers(60, 1500),
    st.integers(60, 1500),
    st.integers(0, 4),
    st.integers(0, 20),
    st.integers(1, 2000),
)
@settings(max_examples=40, deadline=None)
def test_more_of_anything_never_takes_less(setups, width, height, images, video, text):
    setup = setups(NANO, "orin")
    few = 200 * 28 * 28
    base = Request(width, height, images, float(video), num_text_tokens=text, max_pixels=few)

    def measure(request):
        prompt = make_prompt(setup, request)
        run, scores = plan_run(setup, request, prompt)
        return prompt.num_prompt_tokens, run.nbytes, scores, prompt.capacity

    small = measure(base)
    for change in (
        {"max_pixels": 2 * few},
        {"num_images": images + 1},
        {"num_text_tokens": text + 100},
        {"num_new_tokens": 400},
        {"batch": 2},
    ):
        large = measure(dataclasses.replace(base, **change))
        assert all(b >= a for a, b in zip(small, large, strict=True)), change


@given(st.integers(1, 500))
@settings(max_examples=30, deadline=None)
def test_a_longer_context_never_takes_less(setups, steps):
    setup = setups(THOR)

    def measure(context):
        plan = make_plan(setup, Request(num_images=0, context=context))
        return (plan.run.nbytes, *(cost.nbytes for cost in plan.costs))

    short, long = measure(400 + 60 * steps), measure(460 + 60 * steps)
    assert all(b >= a for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"split": 0}, {"prefill_tokens": 0}, {"num_images": -1}, {"video_s": -1.0}],
)
def test_requests_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="needed"):
        Request(**options)


def test_a_plan_in_float16_says_what_it_can_not_hold(model):
    def notes(dtype):
        return make_plan(make_setup(model("2b"), AGX, dtype=dtype), Request()).notes

    assert any("float16 overflows over 65504" in note for note in notes("fp16"))
    assert not any("float16" in note for note in notes("bf16"))
