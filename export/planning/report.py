"""Show a plan as tables, or as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...runtime.terminal.console import print_line, print_table
from .devices import Device
from .fit import Alternative
from .memory import BUILD_COPIES, MIB
from .plan import Budget, Cost, Plan
from .roofline import FITTED, Factors


def print_plan(plan: Plan, alternatives: Sequence[Alternative], *, explain: bool) -> None:
    """All tables, the verdict last."""
    setup, prompt = plan.setup, plan.prompt
    target = setup.target.name if setup.target else "ONNX Runtime"
    print_line(
        f"{setup.model.name}, recipe {setup.costing.precision.name}, "
        f"{setup.costing.rules.float_name}, for {target} on {setup.device.label}"
    )
    print_line()
    how = "counted with its tokenizer" if prompt.is_measured else "of the known template"
    rows = [
        (_name_visual(visual.kind, visual.grid.t), f"{visual.width}x{visual.height}", number)
        for visual, number in _group(plan)
    ]
    rows += [
        (f"template, {how}", "", prompt.num_overhead_tokens),
        ("question", "", prompt.num_text_tokens),
        ("answer", "", prompt.num_new_tokens),
        ("cache is made for", "", prompt.capacity),
        ("M-RoPE position of the answer", "", prompt.next_position),
    ]
    print_table("tokens", ("", "seen as", ">tokens"), rows)
    more = plan.run_with_scores - plan.run.nbytes
    extra = [("attention's scores, if the ViT's are not fused", f"{more / MIB:,.1f}", "more")]
    free_is = setup.device.free_is
    print_budget("memory while it runs", plan.run, extra if more else [], free_is=free_is)
    if plan.build:
        print_budget("memory while its engines are built", plan.build, free_is=free_is)
    columns = ("", ">GFLOP", ">GB moved", ">estimate")
    print_table("work", columns, [_describe_cost(cost) for cost in plan.costs])
    if plan.first_token_s is not None and plan.tokens_per_s is not None:
        print_line(
            f"first token after {1e3 * plan.first_token_s:.0f} ms without preparing the pictures, "
            f"then {plan.tokens_per_s:.1f} tokens/s: estimates, see --explain"
        )
        print_line()
    if explain:
        print_sources(setup.device, FITTED)
    for note in plan.notes:
        print_line(f"note: {note}")
    print_verdict(plan, alternatives)


def print_budget(
    title: str, budget: Budget, extra: Sequence[Sequence[str]] = (), *, free_is: str = ""
) -> None:
    """Lines, their sum, what there is and by which assumption, and what might come on top."""
    rows = [(part.name, f"{part.nbytes / MIB:,.1f}", part.kind) for part in budget.parts]
    rows += [
        ("in all", f"{budget.nbytes / MIB:,.1f}", ""),
        ("free on the device", f"{budget.free_bytes / MIB:,.1f}", free_is),
        *extra,
    ]
    print_table(title, ("", ">MiB", ""), rows)


def print_sources(device: Device, factors: Factors) -> None:
    """Every number of the device with where it is from, and what is assumed."""
    print_table("where numbers are from", ("", ""), list(device.sources.items()))
    rates = {name: getattr(device, name) / 1e12 for name in ("half", "int8", "fp8")}
    rows = [
        ("bandwidth", f"{device.bandwidth / 1e9:.1f} GB/s"),
        *(
            (name, f"{getattr(device, name) / 1e12:.1f} T/s, dense")
            for name in rates
            if getattr(device, name)
        ),
        ("share of the bandwidth", f"{factors.memory:.2f}, fitted"),
        ("share of the matrix rate", f"{factors.matrix:.2f}, fitted"),
        ("a kernel beyond both", f"{factors.launch_us:.0f} us, fitted"),
        ("building", f"{BUILD_COPIES:g} times the weights, see memory.py"),
    ]
    print_table("assumptions (docs/planning.md)", ("", ""), rows)


def print_verdict(plan: Plan, alternatives: Sequence[Alternative]) -> None:
    """Whether it fits, why not, and what does."""
    for problem in plan.problems:
        print_line(f"does not fit: {problem}")
    if plan.fits:
        print_line("fits")
    for alternative in alternatives:
        print_line(f"  fits: {alternative.text} ({alternative.option})")
    if not plan.fits and not alternatives:
        print_line(
            "  nothing that was tried fits: no picture, context, number of engines or preset"
        )


def make_json(plan: Plan, alternatives: Sequence[Alternative]) -> dict[str, Any]:
    """The same for scripts; bytes and seconds."""
    setup, prompt = plan.setup, plan.prompt
    return {
        "model": setup.model.name,
        "device": setup.device.name,
        "free_memory": {
            "bytes": setup.device.free_bytes,
            "assumption": setup.device.free_is,
        },
        "target": setup.target.name if setup.target else None,
        "recipe": setup.costing.precision.name,
        "dtype": setup.costing.rules.float_name,
        "fits": plan.fits,
        "problems": list(plan.problems),
        "notes": list(plan.notes),
        "alternatives": [{"option": each.option, "text": each.text} for each in alternatives],
        "tokens": {
            "visuals": [
                {
                    "kind": visual.kind,
                    "width": visual.width,
                    "height": visual.height,
                    "grid": list(visual.grid),
                    "tokens": visual.num_tokens,
                }
                for visual in prompt.visuals
            ],
            "template": prompt.num_overhead_tokens,
            "template_is_measured": prompt.is_measured,
            "prompt": prompt.num_prompt_tokens,
            "answer": prompt.num_new_tokens,
            "next_position": prompt.next_position,
            "capacity": prompt.capacity,
        },
        "run": _budget_json(plan.run),
        "run_bytes_with_scores": plan.run_with_scores,
        "run_bytes_one_graph": plan.run_one_graph,
        "build": _budget_json(plan.build) if plan.build else None,
        "costs": [
            {"phase": c.name, "flops": c.flops, "bytes": c.nbytes, "seconds": c.seconds}
            for c in plan.costs
        ],
        "first_token_s": plan.first_token_s,
        "tokens_per_s": plan.tokens_per_s,
        "sources": setup.device.sources,
    }


def _budget_json(budget: Budget) -> dict[str, Any]:
    return {
        "bytes": budget.nbytes,
        "free_bytes": budget.free_bytes,
        "fits": budget.fits,
        "parts": [
            {"name": part.name, "bytes": part.nbytes, "kind": part.kind} for part in budget.parts
        ],
    }


def _group(plan: Plan) -> list[tuple[Any, str]]:
    """Equal pictures in one row: the visual, and its tokens."""
    rows = []
    for visual in dict.fromkeys(plan.prompt.visuals):
        count = plan.prompt.visuals.count(visual)
        number = f"{visual.num_tokens}" if count == 1 else f"{count} x {visual.num_tokens}"
        rows.append((visual, number))
    return rows


def _name_visual(kind: str, num_slices: int) -> str:
    return "picture" if kind == "image" else f"clip, {num_slices} pairs of frames"


def _describe_cost(cost: Cost) -> tuple[str, str, str, str]:
    name = "decode, one token" if cost.name == "decode" else cost.name
    seconds = "" if cost.seconds is None else f"{1e3 * cost.seconds:,.1f} ms"
    return name, f"{cost.flops / 1e9:,.1f}", f"{cost.nbytes / 1e9:,.2f}", seconds
