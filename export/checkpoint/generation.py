"""generation_config.json of a checkpoint -> the bundle's defaults of generation."""

from __future__ import annotations

from pathlib import Path

from ...runtime.manifest import GenerationDefaults
from .json_file import read_json

TRANSFORMERS_TOP_K = 50  # of generate(), for a checkpoint that samples and names no other


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """What generation_config.json says about sampling.

    Raises:
        ValueError: a value of the wrong kind.
    """
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    default = GenerationDefaults()

    def number(key: str, fallback: float) -> float:
        value = config.get(key)
        if value is None:
            return fallback
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{path}: {key} is {value!r}, a number of at least 0 is needed")
        return value

    do_sample = config.get("do_sample") is True
    return GenerationDefaults(
        do_sample=do_sample,
        temperature=float(number("temperature", default.temperature)),
        top_k=int(number("top_k", TRANSFORMERS_TOP_K if do_sample else default.top_k)),
        top_p=float(number("top_p", default.top_p)),
        repetition_penalty=float(number("repetition_penalty", default.repetition_penalty)),
    )
