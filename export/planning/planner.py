"""Plan a request on a setup: tokens, memory, work, times, and whether it fits."""

from __future__ import annotations

from ...runtime.backends.kv_cache import limit_clip
from ...runtime.decode.encode import VISION_PATCHES
from ..lowering.options import DEFAULT_CONTEXT
from .memory import (
    HEAD_TACTIC,
    MIB,
    Buffers,
    MemoryPart,
    list_build_parts,
    list_run_parts,
    measure_decoder,
    measure_vision,
    sum_lines,
)
from .placement import Setup
from .plan import Budget, Cost, Plan, Request
from .roofline import FITTED, Factors, estimate_seconds
from .tokens import PromptPlan, Visual, count_frames, plan_image, plan_prompt, plan_video
from .work import (
    Call,
    Work,
    decode_call,
    join,
    list_calls,
    list_decoder,
    list_vision,
    sum_bytes,
    sum_flops,
)

# A picture whose sides are only rounded to patches keeps more of its area than this
SHRUNK = 0.9


def make_plan(setup: Setup, request: Request, factors: Factors = FITTED) -> Plan:
    """Compute everything.

    Raises:
        ValueError: a request that makes no sense, or not to this bundle.
    """
    prompt = make_prompt(setup, request)
    run, with_scores = plan_run(setup, request, prompt)
    build = plan_build(setup, request)
    problems = []
    if prompt.problem:
        problems.append(prompt.problem)
    if not run.fits:
        problems.append(_lacks("running", run))
    if build and not build.fits:
        problems.append(_lacks("building the engines", build))
    work = _list_work(setup, request, prompt)
    is_timed = setup.device.is_timed
    costs = tuple(
        Cost(
            name,
            sum_flops(pieces),
            sum_bytes(pieces),
            estimate_seconds(pieces, setup.device, factors) if is_timed else None,
        )
        for name, pieces in work.items()
    )
    return Plan(
        setup,
        request,
        prompt,
        run,
        with_scores,
        measure_one_graph(setup, request, run),
        build,
        costs,
        tuple(problems),
        tuple(_list_notes(setup, request, prompt, run, with_scores)),
    )


def make_prompt(setup: Setup, request: Request) -> PromptPlan:
    """Tokens of the request.

    Raises:
        ValueError: sizes or lengths that make no sense.
    """
    model = setup.model
    common = (model.pixels, model.vision, request.max_pixels)
    visuals: list[Visual] = []
    if request.num_images:
        visuals += [plan_image(request.width, request.height, *common)] * request.num_images
    if request.video_s:
        frames = count_frames(request.video_s)
        size = (request.video_width or request.width, request.video_height or request.height)
        visuals.append(plan_video(*size, frames, *common, _find_clip_pixels(setup, request)))
    return plan_prompt(
        visuals,
        request.num_text_tokens,
        request.num_new_tokens,
        setup.find_context(request.context),
        model.decoder.max_position_embeddings,
        model.vision,
        model.mrope_rule,
        model.count,
    )


def _find_clip_pixels(setup: Setup, request: Request) -> int | None:
    """Of a clip, as the runtime limits it to the engines' context; None: as the bundle has it."""
    model = setup.model
    if setup.target is None:
        return None
    positions = model.decoder.max_position_embeddings
    context = setup.find_context(request.context) or min(DEFAULT_CONTEXT, positions)
    return limit_clip(model.pixels.max_pixels, model.vision, positions, context)


def plan_run(setup: Setup, request: Request, prompt: PromptPlan) -> tuple[Budget, int]:
    """Memory while the request runs; and in all if the ViT's scores are kept."""
    costing = setup.costing
    attended = prompt.capacity + (0 if setup.in_place else request.prefill_tokens)
    new_tokens = min(request.prefill_tokens, prompt.num_prompt_tokens)
    decoder = measure_decoder(costing, 1, new_tokens, attended, in_place=setup.in_place)
    step = measure_decoder(costing, request.batch, 1, attended, in_place=setup.in_place)
    visions = [
        measure_vision(costing, visual, _slices_per_call(setup, visual))
        for visual in dict.fromkeys(prompt.visuals)
    ]

    def list_parts(*, fused_vision: bool) -> list[MemoryPart]:
        buffers: list[tuple[Buffers, bool]] = [(each, fused_vision) for each in visions]
        buffers += [(decoder, costing.fused_decoder), (step, costing.fused_decoder)]
        return list_run_parts(
            costing,
            prompt,
            setup.weights,
            setup.table_bytes,
            costing.shapes.cache_bytes(prompt.capacity, request.batch, setup.cache_element_bytes),
            buffers,
            has_gpu=setup.device.has_gpu,
            has_video=request.video_s > 0,
            is_unified=setup.device.is_unified,
            repeated_bytes=setup.repeated_bytes,
        )

    parts = list_parts(fused_vision=costing.fused_vision)
    scores = sum_lines(list_parts(fused_vision=False))
    return Budget(tuple(parts), setup.device.free_bytes), scores


def measure_one_graph(setup: Setup, request: Request, run: Budget) -> int:
    """What running takes if only the graph in use is loaded: ViT, clips' ViT, decoder in turn."""
    weights = setup.weights
    vision = weights["vision"]
    decoder = weights["decoder"] + weights["lm_head"] + setup.repeated_bytes
    visions = 2 if request.video_s and setup.device.has_gpu else 1
    return run.nbytes - (visions * vision + decoder) + max(vision, decoder)


def plan_build(setup: Setup, request: Request) -> Budget | None:
    """Memory while the neediest engine is built on the device itself.

    None without a GPU, and where it has a memory of its own: a build needs the host's then.

    Raises:
        ValueError: more parts than the decoder has layers.
    """
    if not (setup.device.has_gpu and setup.device.is_unified):
        return None
    weights = setup.weights
    parts = list_build_parts(
        weights["vision"],
        setup.layer_bytes,
        weights["lm_head"],
        request.split,
        request.separate_lm_head,
    )
    return Budget(tuple(parts), setup.device.free_bytes)


def list_shrunk(request: Request, prompt: PromptPlan) -> list[str]:
    """Pictures and clips that the model sees smaller than they are."""
    notes = []
    for visual in dict.fromkeys(prompt.visuals):
        is_image = visual.kind == "image"
        width = request.width if is_image else request.video_width or request.width
        height = request.height if is_image else request.video_height or request.height
        if visual.width * visual.height < SHRUNK * width * height:
            what = "pictures" if is_image else "frames of the clip"
            notes.append(
                f"{what} of {width}x{height} are shrunk to {visual.width}x{visual.height}: the "
                "pixel budget allows no more"
            )
    return notes


def _list_work(setup: Setup, request: Request, prompt: PromptPlan) -> dict[str, list[Work]]:
    costing = setup.costing
    vision = []
    for visual in prompt.visuals:
        num_frames = 1 if visual.kind == "image" else costing.shapes.frames_per_patch
        step = _slices_per_call(setup, visual)
        for start in range(0, visual.grid.t, step):
            slices = min(step, visual.grid.t - start)
            vision.append(list_vision(costing, visual.num_patches, slices, num_frames))
    calls = list_calls(
        prompt.num_prompt_tokens,
        prompt.capacity,
        request.prefill_tokens,
        in_place=setup.in_place,
    )
    # Prompts are read one after another, their answers written together.
    step_call: Call = decode_call(prompt.capacity, in_place=setup.in_place, batch=request.batch)
    return {
        "ViT": request.batch * join(vision),
        "prefill": request.batch * join([list_decoder(costing, call) for call in calls]),
        "decode": list_decoder(costing, step_call),
    }


def _slices_per_call(setup: Setup, visual: Visual) -> int:
    """Engines are built for one picture a call; ONNX Runtime takes several small ones."""
    if setup.target is not None:
        return 1
    return min(visual.grid.t, max(1, VISION_PATCHES // visual.num_patches))


def _lacks(what: str, budget: Budget) -> str:
    missing = budget.nbytes - budget.free_bytes
    return (
        f"{what} takes {budget.nbytes / MIB:.0f} MiB, {budget.free_bytes / MIB:.0f} MiB are free: "
        f"{missing / MIB:.0f} MiB too many"
    )


def _list_notes(
    setup: Setup, request: Request, prompt: PromptPlan, run: Budget, with_scores: int
) -> list[str]:
    notes = []
    if run.fits and with_scores > run.free_bytes:
        notes.append(
            f"if TensorRT does not fuse the ViT's attention, running takes {with_scores / MIB:.0f} "
            f"MiB, which does not fit (--count-scores plans so)"
        )
    head = int(HEAD_TACTIC * setup.weights["lm_head"])
    piece = setup.device.largest_allocation
    if piece is not None and head > piece:
        advice = "boot with cma=950M if the build fails"
        if not request.separate_lm_head:
            advice = "build with --separate-lm-head, and boot with cma=950M if that fails"
        notes.append(
            f"building the lm_head may ask for {head / MIB:.0f} MiB in one piece, this board gives "
            f"{piece / MIB:.0f} MiB: {advice}"
        )
    if setup.costing.rules.float_name == "float16":
        notes.append(
            "float16 overflows over 65504: vlmedge export --selfcheck and check look for it "
            "by layer; bf16 has no such limit"
        )
    notes += list_shrunk(request, prompt)
    if not prompt.is_measured:
        notes.append("tokens of the template are those of Qwen2-VL's own, no tokenizer was there")
    if not setup.device.is_timed:
        notes.append(f"no times: bandwidth and rates of {setup.device.label} are not known")
    if request.video_s and not setup.device.has_gpu:
        notes.append("the graph of clips shares the ViT's weights on disk and in memory")
    return notes
