"""A configuration -> the steps of its check, in the order they run.

Correctness on the small sample comes before speed at full size, and what is most wanted first: time
on a GPU machine may end anywhere. Steps of one precision need no other precision's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .config import Config
from .precisions import PRECISIONS


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a function in a process of its own.

    Attributes:
        name: "sample.fp16.engines".
        function: "module:function", called with the configuration and `args`.
        needs: steps that must be ok.
        budget_s: seconds it may take.
        needs_gpu: it can't be part of a dry run.
    """

    name: str
    function: str
    needs: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    budget_s: int = 120
    needs_gpu: bool = False


def list_steps(config: Config) -> list[Step]:
    """All steps of a check."""
    steps = [
        Step("machine", "gpu_check.machine:describe", budget_s=90),
        Step("ceilings", "gpu_check.ceilings:measure", ("machine",), budget_s=90, needs_gpu=True),
        Step("sample.float", "gpu_check.bundles:export_float", ("machine",), ("sample",), 60),
    ]
    for name in config.precisions:
        steps += _list_bundle("sample", name, budget_s=120)
        # Where it runs at all is found out with the first precision that there is.
        if name == config.precisions[0]:
            steps.append(_probe(name))
        steps += _list_sample(config, name)
    timed = [name for name in config.precisions if PRECISIONS[name].is_timed]
    steps.append(Step("checkpoint", "gpu_check.bundles:make_model", ("machine",), budget_s=180))
    steps.append(
        Step("torch", "gpu_check.torch_side:measure", ("checkpoint",), budget_s=150, needs_gpu=True)
    )
    has_float = False
    for name in timed:
        if PRECISIONS[name].recipe and not has_float:
            has_float = True
            args = ("model",)
            steps.append(
                Step("model.float", "gpu_check.bundles:export_float", ("checkpoint",), args, 180)
            )
        steps += _list_bundle("model", name, budget_s=300)
        steps += _list_model(config, name)
    if has_float:
        function = "gpu_check.timing:measure_onnxruntime"
        needs = ("model.float", "machine")
        steps.append(Step("onnxruntime", function, needs, budget_s=150, needs_gpu=True))
    return steps


def choose_steps(
    steps: list[Step], only: Collection[str], done: Collection[str], again: Collection[str]
) -> list[Step]:
    """The steps that are to run now.

    Args:
        steps: all of them.
        only: names, or beginnings of names ("sample", "model.fp16"); none: all.
        done: steps that are ok.
        again: names or beginnings: run though they are ok.

    Raises:
        ValueError: a name that no step has.
    """
    for wanted in (*only, *again):
        if not any(_matches(step.name, wanted) for step in steps):
            names = ", ".join(step.name for step in steps)
            raise ValueError(f"there is no step {wanted!r}, only {names}")
    chosen = []
    for step in steps:
        if only and not any(_matches(step.name, wanted) for wanted in only):
            continue
        if step.name in done and not any(_matches(step.name, wanted) for wanted in again):
            continue
        chosen.append(step)
    return chosen


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _list_bundle(model: str, name: str, budget_s: int) -> list[Step]:
    needs = (f"{model}.float",) if PRECISIONS[name].recipe or model == "sample" else ("checkpoint",)
    args = (model, name)
    return [Step(f"{model}.{name}.bundle", "gpu_check.bundles:make_bundle", needs, args, budget_s)]


def _probe(name: str) -> Step:
    needs = ("machine", f"sample.{name}.bundle")
    return Step("probe", "gpu_check.probe:find_target", needs, (name,), 120, needs_gpu=True)


def _list_sample(config: Config, name: str) -> list[Step]:
    bundle, args = f"sample.{name}.bundle", ("sample", name)
    reference = f"sample.{PRECISIONS[name].reference}.reference"
    steps = [_engines(config, "sample", name, 120)]
    if PRECISIONS[name].reference == name:
        steps.append(Step(reference, "gpu_check.compare:observe_reference", (bundle,), args, 120))
    needs = (f"sample.{name}.engines", reference)
    steps.append(
        Step(f"sample.{name}.compare", "gpu_check.compare:compare", needs, args, 90, needs_gpu=True)
    )
    return steps


def _list_model(config: Config, name: str) -> list[Step]:
    needs = (f"model.{name}.engines", "ceilings")
    return [
        _engines(config, "model", name, 300),
        Step(
            f"model.{name}.times", "gpu_check.timing:measure_engines", needs, ("model", name), 120,
            needs_gpu=True,
        ),
    ]  # fmt: skip


def _engines(config: Config, model: str, name: str, budget_s: int) -> Step:
    needs = (f"{model}.{name}.bundle", *(() if config.dry_run else ("probe",)))
    return Step(
        f"{model}.{name}.engines", "gpu_check.engines:build", needs, (model, name), budget_s,
    )  # fmt: skip
