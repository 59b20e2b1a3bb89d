"""All settings of a checkpoint as transformers resolves them, in one object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.manifest import GenerationDefaults, PixelBudget
from .config import ModelSpec
from .files.origin import Origin
from .generation import find_generation_defaults
from .pixels import find_pixel_budget
from .text.chat_template import find_chat_template
from .text.tokenizer import TokenizerFiles, find_tokenizer


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """What decides a checkpoint's answers beside its weights.

    Attributes:
        spec: sizes, constants and token ids.
        pixels: limits, filter and statistics of pictures.
        tokenizer: tokenizer.json, and the names that templates see.
        chat_template: Jinja.
        generation: defaults of requests.
        origins: of each setting but the model's: file and key.
        unusual: remarks, a line each.
    """

    spec: ModelSpec
    pixels: PixelBudget
    tokenizer: TokenizerFiles
    chat_template: str
    generation: GenerationDefaults
    origins: tuple[Origin, ...]
    unusual: tuple[str, ...]


def resolve_settings(folder: Path, spec: ModelSpec) -> CheckpointSettings:
    """Read all files but config.json, which `spec` is from.

    Raises:
        ValueError: a file is missing, damaged, or asks for what is refused by name.
    """
    pixels = find_pixel_budget(folder, spec)
    tokenizer = find_tokenizer(folder, spec.tokens)
    template = find_chat_template(folder)
    generation = find_generation_defaults(folder, spec.decoder.vocab_size)
    found = (pixels, tokenizer, template, generation)
    return CheckpointSettings(
        spec,
        pixels.value,
        tokenizer.value,
        template.value,
        generation.value,
        tuple(origin for part in found for origin in part.origins),
        tuple(remark for part in found for remark in part.unusual),
    )
