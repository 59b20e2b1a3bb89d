"""Engines on the GPU against ONNX Runtime on the CPU: the same graphs, the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundles import PICTURES, ModelName, find_bundle
from .config import Config
from .observe import Observation, Side
from .precisions import PRECISIONS

NUM_TOKENS = 12  # the sample's answers have fewer; what follows is compared all the same


def list_questions(pictures: Path = PICTURES) -> list[list[dict[str, Any]]]:
    """A conversation for each single picture of the sample; clips have another graph."""
    entries = json.loads((pictures / "questions.json").read_text(encoding="utf-8"))
    return [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": str(pictures / entry["picture"])},
                    {"type": "text", "text": entry["question"]},
                ],
            }
        ]
        for entry in entries
        if "picture" in entry
    ]


def observe_reference(config: Config, model: ModelName, precision: str) -> dict[str, Any]:
    """Ask ONNX Runtime's CPU all questions and keep what it says."""
    seen = observe_all(find_bundle(config, model, precision), "cpu", None)
    write_observations(find_reference(config, precision), seen)
    return {"questions": len(seen), "tokens": sum(len(each.token_ids) for each in seen)}


def compare(config: Config, model: ModelName, precision: str) -> dict[str, Any]:
    """Ask the engines the same; the errors, and where another token is the likeliest."""
    chosen = PRECISIONS[precision]
    needed = read_observations(find_reference(config, chosen.reference))
    got = observe_all(find_bundle(config, model, precision), "tensorrt", needed)
    return judge(got, needed, chosen.limit)


def observe_all(bundle: Path, provider: str, told: list[Observation] | None) -> list[Observation]:
    """All questions on one engine; with the tokens of `told`, where there are any."""
    side = Side(bundle, provider)
    try:
        return [
            side.observe(question, NUM_TOKENS, told[i].token_ids if told else None)
            for i, question in enumerate(list_questions())
        ]
    finally:
        side.close()


def judge(got: list[Observation], needed: list[Observation], limit: float) -> dict[str, Any]:
    """Relative L2 errors, the largest of all questions; "failure" says what is beyond the limit."""
    pairs = list(zip(got, needed, strict=True))
    embeds = max(measure_error(a.image_embeds, b.image_embeds) for a, b in pairs)
    logits = max(measure_error(a.logits, b.logits) for a, b in pairs)
    equal = sum(x == y for a, b in pairs for x, y in zip(a.token_ids, b.token_ids, strict=True))
    figures: dict[str, Any] = {
        "image_embeds_error": embeds,
        "logits_error": logits,
        "equal_tokens": equal,
        "tokens": sum(len(each.token_ids) for each in needed),
        "limit": limit,
    }
    if not (embeds <= limit and logits <= limit):  # also of what is not a number
        figures["failure"] = (
            f"image embeddings are off by {embeds:.2g} and logits by {logits:.2g}, "
            f"at most {limit:g} was expected"
        )
    return figures


def measure_error(got: NDArray[np.float32], needed: NDArray[np.float32]) -> float:
    """Norm of the difference over the norm of what was needed."""
    difference = np.linalg.norm((got - needed).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(needed.astype(np.float64))), 1e-12))


def find_reference(config: Config, precision: str) -> Path:
    """Where the reference's observations are."""
    return config.work / f"reference.{precision}.npz"


def write_observations(path: Path, seen: list[Observation]) -> None:
    """Keep them."""
    arrays = {}
    for i, each in enumerate(seen):
        arrays |= {f"embeds.{i}": each.image_embeds, f"logits.{i}": each.logits}
    np.savez(path, **arrays)


def read_observations(path: Path) -> list[Observation]:
    """What `write_observations` kept."""
    with np.load(path) as arrays:
        return [
            Observation(
                arrays[f"embeds.{i}"],
                arrays[f"logits.{i}"],
                tuple(map(int, arrays[f"logits.{i}"].argmax(axis=1))),
            )
            for i in range(len(arrays.files) // 2)
        ]
