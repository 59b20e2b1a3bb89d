"""Every command that a fingerprint runs: a table from the words that vlmedge completes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PARTS = ("bundles", "check", "plan")
NO_DEVICES = ("this",)  # its free memory is that of the moment
# ONNX Runtime computes it on a CPU too, so that graphs for a target can be checked
CHECKED_DTYPE = "fp32"

CHECKPOINT, DATA, GATE = "reader", "data/data.jsonl", "gate.toml"
CALIBRATION = ("--data", DATA, "--limit", "4", "--seed", "0", "--threads", "1")
# Seed 6 chooses the clip too; a time that is measured once is as good as five that are dropped
CHECKED = ("--data", DATA, "--limit", "4", "--seed", "6", "--threads", "1", "--speed-runs", "1")
# Limits that no rounding holds
GATE_TEXT = """
image_embeds.cosine_min = 0.9999999
logits.kl_mean_max = 1e-9
tasks.loss_max = 0.0
layers.own_sqnr_db_min = 99
"""
REQUESTS = (
    (),
    ("--images", "2", "--video", "10s", "--image", "640x480", "--batch", "2", "--split", "2"),
    ("--free-memory", "1"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One command, and the exit codes with which it is recorded; others end the whole."""

    args: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    part: str = "bundles"


@dataclass(frozen=True, slots=True)
class Words:
    """What the command completes options with."""

    weights: list[str]
    recipes: list[str]
    targets: list[str]
    dtypes: list[str]
    devices: list[str]


def list_sources(words: Words) -> Iterator[Run]:
    """Bundles that later runs read; the slowest first, so that no core waits at the end."""
    for recipe in reversed(words.recipes):
        args = ("quantize", CHECKPOINT, f"recipe-{recipe}", "--recipe", recipe)
        yield Run((*args, *CALIBRATION, "--json"))
    for weights in words.weights:
        yield Run(("export", CHECKPOINT, f"weights-{weights}", "--weights", weights, "--json"))
    for target in words.targets:
        yield Run(lower(CHECKPOINT, f"target-{target}", target, "--dtype", CHECKED_DTYPE))


def list_products(words: Words) -> Iterator[Run]:
    """Everything else, part by part."""
    bundles = [f"recipe-{recipe}" for recipe in words.recipes]
    bundles += [f"target-{target}" for target in words.targets]
    for bundle in bundles:
        args = ("check", bundle, "--against", "weights-fp32", "--gate", GATE)
        yield Run((*args, *CHECKED, "--json"), (0, 1), "check")
    for target in words.targets:
        for dtype in words.dtypes:
            if dtype != CHECKED_DTYPE:
                args = lower(CHECKPOINT, f"{target}-{dtype}", target, "--dtype", dtype)
                yield Run(args)
        yield Run(lower(CHECKPOINT, f"{target}-linked", target, "--link-weights"))
        for recipe in words.recipes:  # some formats are beyond some targets
            yield Run(lower(f"recipe-{recipe}", f"{target}-{recipe}", target), (0, 1))
    for device in words.devices:
        given = [("--recipe", recipe) for recipe in words.recipes]
        if device == words.devices[0]:
            given += [("--target", target) for target in words.targets]
            given += [("--dtype", dtype) for dtype in words.dtypes]
        for options in (*REQUESTS, *given):  # 1: does not fit; 2: not a target of this board
            args = ("plan", CHECKPOINT, "--device", device, *options, "--json")
            yield Run(args, (0, 1, 2), "plan")


def lower(source: str, bundle: str, target: str, *options: str) -> tuple[str, ...]:
    """Arguments that turn a checkpoint or bundle into graphs for a target."""
    return ("export", source, bundle, "--target", target, *options, "--json")
