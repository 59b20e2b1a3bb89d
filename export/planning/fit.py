"""Find the largest picture, the longest context and the finest recipe that fit.

Found by search over the plan's own functions, which grow with each of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...runtime.backends.kv_cache import CAPACITY_STEP
from .placement import Setup
from .plan import Plan, Request
from .planner import make_prompt, plan_build, plan_run


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something that fits.

    Attributes:
        option: of the command line that asks for it.
        text: what it is.
    """

    option: str
    text: str


def fits(setup: Setup, request: Request) -> bool:
    """Whether prompt, running and building all do."""
    build = plan_build(setup, request)
    return runs(setup, request) and (build is None or build.fits)


def runs(setup: Setup, request: Request) -> bool:
    """Whether the prompt fits its context, and running the memory."""
    try:
        prompt = make_prompt(setup, request)
    except ValueError:
        return False
    return prompt.problem is None and plan_run(setup, request, prompt)[0].fits


def find_picture(setup: Setup, request: Request) -> Alternative | None:
    """The largest pictures of this shape and number with which the request runs, all else as it is.

    None where even the smallest are too much, there are none, or the limit given is the largest.
    """
    if not request.num_images:
        return None
    pixels, vision = setup.model.pixels, setup.model.vision
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    # So large that the budget decides; a clip's frames stay as they are
    times = 1 + math.isqrt(pixels.max_pixels // (request.width * request.height) + 1)
    large = dataclasses.replace(
        request,
        width=times * request.width,
        height=times * request.height,
        video_width=request.video_width or request.width,
        video_height=request.video_height or request.height,
    )

    def try_tokens(count: int) -> bool:
        return runs(setup, dataclasses.replace(large, max_pixels=count * area))

    best = _largest(try_tokens, -(-pixels.min_pixels // area), pixels.max_pixels // area)
    if best is None or best * area == request.max_pixels:
        return None
    seen = make_prompt(setup, dataclasses.replace(large, max_pixels=best * area)).visuals[0]
    text = f"pictures of up to {seen.width}x{seen.height}, {seen.num_tokens} tokens each"
    return Alternative(f"--max-pixels {best * area}", text)


def find_context(setup: Setup, request: Request) -> Alternative | None:
    """The most tokens that the cache may be made for, all else as it is.

    None where nothing does, the bundle's graph fixes them, or as many were asked for.
    """
    manifest = setup.model.manifest
    if manifest and manifest.target and manifest.target.capacity is not None:
        return None
    limit = setup.model.decoder.max_position_embeddings
    steps = -(-limit // CAPACITY_STEP)

    def try_steps(count: int) -> bool:
        return runs(setup, dataclasses.replace(request, context=min(limit, count * CAPACITY_STEP)))

    needed = make_prompt(setup, dataclasses.replace(request, context=None)).num_tokens
    best = _largest(try_steps, min(steps, -(-needed // CAPACITY_STEP)), steps)
    if best is None:
        return None
    tokens = min(limit, best * CAPACITY_STEP)
    if tokens == request.context:
        return None
    return Alternative(f"--context {tokens}", f"the cache holds {tokens} tokens")


def find_residency(plan: Plan) -> Alternative | None:
    """Loading one graph at a time, where that runs and all together do not."""
    if plan.run.fits or plan.run_one_graph > plan.run.free_bytes:
        return None
    size = plan.run_one_graph / 2**20
    text = f"one graph in memory at a time takes {size:.0f} MiB, and loads them for every request"
    return Alternative('residency="one" of Model.load, as vlmedge run has it', text)


def find_split(setup: Setup, request: Request) -> Alternative | None:
    """The fewest parts of the decoder in which it can be built here; only what isn't given yet."""
    for separate in dict.fromkeys((request.separate_lm_head, True)):
        for split in range(request.split, setup.costing.shapes.num_layers + 1):
            changed = dataclasses.replace(request, split=split, separate_lm_head=separate)
            build = plan_build(setup, changed)
            if build is None or build.fits:
                options = [f"--split {split}"] if split != request.split else []
                if separate and not request.separate_lm_head:
                    options.append("--separate-lm-head")
                apart = ", and the lm_head as one more" if separate else ""
                engines = f"{split} engine{'' if split == 1 else 's'}"
                return Alternative(" ".join(options), f"the decoder is built as {engines}{apart}")
    return None


def find_recipe(
    request: Request, recipes: Iterable[str], make: Callable[[str], Setup]
) -> Alternative | None:
    """The recipe of most bytes of weights that runs, and can be built in some number of parts.

    Args:
        request: what is asked.
        recipes: names.
        make: recipe -> setup; ValueError: it doesn't go with model or device.
    """
    candidates = []
    for recipe in recipes:
        try:
            setup = make(recipe)
        except ValueError:  # of another device, or another kind of model
            continue
        parts = find_split(setup, request) if runs(setup, request) else None
        if parts is not None:
            needed = "" if fits(setup, request) else f" {parts.option}"
            candidates.append((sum(setup.weights.values()), recipe, needed))
    if not candidates:
        return None
    size, recipe, needed = max(candidates)
    return Alternative(f"--recipe {recipe}{needed}", f"weights of {size / 2**20:.0f} MiB")


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low .. high of which it holds, where it holds of all below too."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
