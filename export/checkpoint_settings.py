"""A checkpoint as transformers loads it -> the settings that decide its answers.

The oracle of an export: values come from transformers' own GenerationConfig and image processor,
which reference.py loads, not from our readers, wherever it has them. Our readers fill in what it
reads with torchvision only (the processor's chat template) and what is a decision of ours
(`mrope_rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..quant.settings import Settings, list_settings
from ..runtime.manifest import GenerationDefaults, MropeRule, PixelBudget, TokenIds
from .checkpoint.chat_template import read_chat_template
from .checkpoint.config import ModelSpec, read_model_spec
from .checkpoint.generation import resolve_generation
from .checkpoint.pixels import read_pixel_budget
from .checkpoint.tokenizer import read_tokenizer

# What Qwen2-VL's weights were trained with; a checkpoint doesn't say, and transformers' own rule
# changed with its version 5.3
MROPE_RULE: MropeRule = "paper"
# Settings of generate() that no bundle has: a checkpoint that asks for one is answered otherwise
_UNKNOWN_TO_BUNDLES = ("guidance_scale", "num_beams", "penalty_alpha")
_NEUTRAL = (None, 0, 1)  # values of these that ask for nothing


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """What a checkpoint's answers hang on, with the content of its files."""

    spec: ModelSpec
    tokens: TokenIds
    pixels: PixelBudget
    generation: GenerationDefaults
    tokenizer: bytes
    chat_template: str
    others: Settings  # of transformers alone

    @property
    def end_ids(self) -> frozenset[int]:
        """What ends an answer."""
        return frozenset(self.tokens.eos)

    @property
    def settings(self) -> Settings:
        """To compare with a bundle's."""
        settings = list_settings(
            self.tokens,
            self.generation,
            self.pixels,
            self.spec.vision,
            MROPE_RULE,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template.encode(),
        )
        return settings | self.others


def read_checkpoint_settings(
    folder: Path, config: Any, load_processor: Callable[[Path], Any]
) -> CheckpointSettings:
    """Read them.

    Args:
        folder: of the checkpoint.
        config: the GenerationConfig that transformers loaded with the model.
        load_processor: transformers' image processor of a folder.

    Raises:
        ValueError: a file is missing or makes no sense.
    """
    spec = read_model_spec(folder)
    eos = _list_ids(config.eos_token_id) or spec.tokens.eos
    tokens = TokenIds(
        vision_start=spec.tokens.vision_start,
        vision_end=spec.tokens.vision_end,
        image_pad=spec.tokens.image_pad,
        video_pad=spec.tokens.video_pad,
        eos=tuple(eos),
        pad=spec.tokens.pad,
    )
    generation = resolve_generation(config.to_dict(), spec.decoder.vocab_size).value
    others = {
        f"generation.{name}": repr(value)
        for name in _UNKNOWN_TO_BUNDLES
        if (value := getattr(config, name, None)) not in _NEUTRAL
    }
    return CheckpointSettings(
        spec,
        tokens,
        _read_pixels(folder, spec, load_processor),
        generation,
        read_tokenizer(folder, tokens),
        read_chat_template(folder),
        others,
    )


def _read_pixels(
    folder: Path, spec: ModelSpec, load_processor: Callable[[Path], Any]
) -> PixelBudget:
    if not (folder / "preprocessor_config.json").is_file():
        return read_pixel_budget(folder, spec)  # Qwen2-VL's own
    processor = load_processor(folder)
    mean, std = (tuple(map(float, v)) for v in (processor.image_mean, processor.image_std))
    return PixelBudget(
        processor.size["shortest_edge"],
        processor.size["longest_edge"],
        (mean[0], mean[1], mean[2]),
        (std[0], std[1], std[2]),
    )


def _list_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
