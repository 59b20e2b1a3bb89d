"""Read the settings that decide a checkpoint's answers, as transformers loads them.

The oracle of an export: values come from transformers' own config, GenerationConfig, image
processor and chat template, never from our readers, so that a wrong reading of ours shows. What is
left of ours is the content of tokenizer.json, which is compared as a file, and what is a decision
of ours (`mrope_rule`, the context of stretched positions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...quant.compare.settings import Settings, list_settings
from ...runtime.bundle.manifest import (
    DecoderSpec,
    GenerationDefaults,
    Manifest,
    MropeRule,
    PixelBudget,
    TokenIds,
    VisionSpec,
)
from ..checkpoint.generation import resolve_generation
from ..checkpoint.keys.generation import RULES
from ..checkpoint.pixels import FILTERS, find_clip_limits, fold_statistics
from ..checkpoint.text.tokenizer import read_tokenizer

# What Qwen2-VL's weights were trained with; a checkpoint doesn't say, and transformers' own rule
# changed with its version 5.3
MROPE_RULE: MropeRule = "paper"


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """What a checkpoint's answers hang on, with the content of its files."""

    vision: VisionSpec
    decoder: DecoderSpec
    tokens: TokenIds
    pixels: PixelBudget
    generation: GenerationDefaults
    tokenizer: bytes
    chat_template: str
    special_tokens: Mapping[str, str]
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
            self.vision,
            MROPE_RULE,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template.encode(),
            special_tokens=self.special_tokens,
        )
        return settings | self.others


def read_checkpoint_settings(
    folder: Path, manifest: Manifest, model: Any, processor: Any, prompts: Any
) -> CheckpointSettings:
    """Gather them from what transformers loaded.

    Args:
        folder: of the checkpoint.
        manifest: of the bundle that is compared; the context's length alone is taken from it.
        model: Qwen2VLForConditionalGeneration.
        processor: its image processor.
        prompts: `transformers_prompts.TransformersPrompts`.

    Raises:
        ValueError: a file is missing or makes no sense.
    """
    config, generation = model.config, model.generation_config
    text = config.text_config
    named = (generation.eos_token_id, text.eos_token_id, prompts.eos_token_id)
    tokens = TokenIds(
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        image_pad=config.image_token_id,
        video_pad=config.video_token_id,
        eos=next(filter(None, map(_list_ids, named)), ()),
        pad=manifest.tokens.pad,
    )
    # Settings of generate() that no bundle has: a checkpoint with one is answered otherwise
    others = {
        f"generation.{rule.key}": repr(value)
        for rule in RULES
        if rule.treatment == "refused"
        and (value := getattr(generation, rule.key, None)) is not None
        and value not in rule.neutral
    }
    return CheckpointSettings(
        _read_vision(config.vision_config),
        _read_decoder(text, manifest),
        tokens,
        _read_pixels(folder, processor),
        resolve_generation(generation.to_dict(), text.vocab_size).value,
        read_tokenizer(folder, tokens),
        prompts.template,
        prompts.special_tokens,
        others,
    )


def _read_vision(config: Any) -> VisionSpec:
    return VisionSpec(
        depth=config.depth,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        spatial_merge_size=config.spatial_merge_size,
    )


def _read_decoder(config: Any, manifest: Manifest) -> DecoderSpec:
    return DecoderSpec(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=manifest.decoder.max_position_embeddings,
    )


def _read_pixels(folder: Path, processor: Any) -> PixelBudget:
    """The limits of clips are by our reader: transformers' needs torchvision."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = _triple(processor.image_mean), _triple(processor.image_std)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = fold_statistics(mean, std, factor)
    pixels = PixelBudget(
        processor.size["shortest_edge"],
        processor.size["longest_edge"],
        mean,
        std,
        FILTERS[int(processor.resample)],
    )
    if (limits := find_clip_limits(folder, pixels).value) is None:
        return pixels
    return dataclasses.replace(pixels, clip_min_pixels=limits[0], clip_max_pixels=limits[1])


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, int | float) else list(value)
    return float(values[0]), float(values[1]), float(values[2])


def _list_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
