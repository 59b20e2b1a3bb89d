"""A checkpoint's tokenizer, chat template, pixel budget and generation defaults -> the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.errors import BundleError
from ..runtime.manifest import GenerationDefaults, PixelBudget, TokenIds
from ..runtime.regular_file import read_regular, read_regular_text
from ..runtime.template import compile_template
from .config import ModelSpec, read_json

TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
# Of a checkpoint without preprocessor_config.json: Qwen2-VL's own limits and CLIP's statistics.
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 1280 * 28 * 28
TRANSFORMERS_TOP_K = 50  # of generate(), for a checkpoint that samples and names no other
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def read_tokenizer(folder: Path, tokens: TokenIds) -> bytes:
    """The content of tokenizer.json, which must know the special tokens that config.json names.

    Raises:
        ValueError: the checkpoint has none, with how to make it; or it is another model's.
    """
    path = folder / TOKENIZER_NAME
    if not path.exists():
        slow = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        advice = (
            "make it from vocab.json and merges.txt once, where transformers is installed: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            if slow
            else "copy it from the model this checkpoint was trained from"
        )
        raise ValueError(f"{folder} has no {TOKENIZER_NAME}; {advice}")
    added = read_json(path).get("added_tokens")
    entries = [t for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    special = [entry.get("id") for entry in entries if entry.get("special") is True]
    for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
        if (token_id := getattr(tokens, name)) not in special:
            raise ValueError(
                f"{path} has no special token with config.json's {name} id {token_id}: "
                "it is another model's tokenizer"
            )
    return read_regular(path)


def read_chat_template(folder: Path) -> str:
    """The chat template's text, from wherever this generation of checkpoints keeps it.

    Raises:
        ValueError: there is none, or several and none is the default; or it has a syntax error.
    """
    template = _find_chat_template(folder)
    try:
        template.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise ValueError(f"{folder}: the chat template is no valid Unicode: {error}") from error
    try:
        compile_template(template)
    except BundleError as error:
        raise ValueError(f"{folder}: {error}") from error
    return template


def _find_chat_template(folder: Path) -> str:
    path = folder / TEMPLATE_NAME
    if path.exists():
        return read_regular_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template = read_json(path).get("chat_template") if path.exists() else None
        if isinstance(template, list):  # several, by name
            items = [item for item in template if isinstance(item, dict)]
            named = [item.get("template") for item in items if item.get("name") == "default"]
            template = named[-1] if named else None
        if isinstance(template, str):
            return template
    raise ValueError(
        f"{folder} has no chat template in {TEMPLATE_NAME}, chat_template.json or "
        f"tokenizer_config.json: put the model's template into {folder / TEMPLATE_NAME}"
    )


def read_pixel_budget(folder: Path, spec: ModelSpec) -> PixelBudget:
    """Limits and normalization from preprocessor_config.json, in its old and its new form.

    Raises:
        ValueError: a value that is no limit or no statistics, or patches that differ from the
            model's.
    """
    path = folder / "preprocessor_config.json"
    config = read_json(path) if path.exists() else {}
    size = config.get("size")
    size = size if isinstance(size, Mapping) else {}
    sizes = {
        "patch_size": spec.vision.patch_size,
        "temporal_patch_size": spec.vision.temporal_patch_size,
        "merge_size": spec.vision.spatial_merge_size,
    }
    for key, needed in sizes.items():
        if config.get(key, needed) != needed:
            raise ValueError(f"{path}: {key} is {config[key]!r}, config.json needs {needed}")
    budget = PixelBudget(
        min_pixels=_limit(path, config, size, "min_pixels", "shortest_edge", DEFAULT_MIN_PIXELS),
        max_pixels=_limit(path, config, size, "max_pixels", "longest_edge", DEFAULT_MAX_PIXELS),
        image_mean=_statistics(path, config.get("image_mean"), IMAGE_MEAN),
        image_std=_statistics(path, config.get("image_std"), IMAGE_STD),
    )
    if budget.min_pixels > budget.max_pixels or min(budget.image_std) <= 0:
        raise ValueError(f"{path}: limits or statistics make no sense: {budget}")
    return budget


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


def _limit(
    path: Path, config: Mapping[str, Any], size: Mapping[str, Any], old: str, new: str, default: int
) -> int:
    value = config.get(old)
    if value is None:
        value = size.get(new, size.get(old))
    if value is None:
        return default
    if type(value) is not int or value <= 0:
        raise ValueError(f"{path}: {old} is {value!r}, a positive number of pixels is needed")
    return value


def _statistics(
    path: Path, value: Any, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if value is None:
        return default
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        raise ValueError(f"{path}: {value!r} is no triple of numbers, one a color channel")
    return (float(value[0]), float(value[1]), float(value[2]))
