"""Compare by name the settings that decide a model's answers beside its weights.

End tokens, sampling defaults, the rule of positions, the pixel budget with its normalization, and
the content of tokenizer and chat template. A wrong one spoils every answer and no embedding, so it
is compared in every check, whatever else is measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import (
    GenerationDefaults,
    Manifest,
    PixelBudget,
    TokenIds,
    VisionSpec,
)
from ...runtime.bundle.manifest_checks import TEMPLATE_TOKENS
from ...runtime.errors import BundleError
from ...runtime.files.regular_file import read_regular
from .findings import SettingFinding

# Name -> value as JSON, or the hash of a file's content
Settings = dict[str, str]
NOT_STATED = "-"  # of a setting that only the other side has
MAX_SHOWN = 200  # characters of a value
# Nothing in the runtime reads it, so no answer depends on it
_UNUSED_TOKENS = ("pad",)
# Of VisionSpec, those that decide how pictures are cut and not what the ViT is
_CUTTING = ("patch_size", "temporal_patch_size", "spatial_merge_size")


def read_bundle_settings(folder: Path, manifest: Manifest) -> Settings:
    """Of a bundle, hashes from the files as they are now.

    Raises:
        BundleError: a file can't be read.
    """
    contents = []
    for name in (manifest.tokenizer_file, manifest.chat_template_file):
        try:
            contents.append(read_regular(folder / name))
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}") from error
    return list_settings(
        manifest.tokens,
        manifest.generation,
        manifest.pixels,
        manifest.vision,
        manifest.mrope_rule,
        tokenizer=contents[0],
        chat_template=contents[1],
        special_tokens=manifest.special_tokens,
    )


def list_settings(
    tokens: TokenIds,
    generation: GenerationDefaults,
    pixels: PixelBudget,
    vision: VisionSpec,
    mrope_rule: str,
    *,
    tokenizer: bytes,
    chat_template: bytes,
    special_tokens: Mapping[str, str],
) -> Settings:
    """By name: `tokens.eos` -> `[151643, 151645]`; the order of end tokens doesn't matter.

    Special tokens are those that the template names.
    """
    named: dict[str, Any] = {}
    for part, values in (("tokens", tokens), ("generation", generation), ("pixels", pixels)):
        named |= {f"{part}.{field}": value for field, value in dataclasses.asdict(values).items()}
    for field in _UNUSED_TOKENS:
        del named[f"tokens.{field}"]
    named["tokens.eos"] = sorted(set(tokens.eos))
    named |= {f"vision.{field}": getattr(vision, field) for field in _CUTTING}
    named["mrope_rule"] = mrope_rule
    named |= {
        f"special_tokens.{name}": special_tokens.get(name)
        for name in dict.fromkeys((*TEMPLATE_TOKENS, *special_tokens))
        if name.encode() in chat_template
    }
    settings = {name: _brief(json.dumps(value)) for name, value in named.items()}
    settings["tokenizer"] = _hash(tokenizer)
    settings["chat_template"] = _hash(chat_template)
    return settings


def compare_settings(
    got: Mapping[str, str], needed: Mapping[str, str]
) -> tuple[SettingFinding, ...]:
    """A finding a setting, those of the reference first."""
    names = dict.fromkeys((*needed, *got))
    return tuple(
        SettingFinding(name, needed.get(name, NOT_STATED), got.get(name, NOT_STATED))
        for name in names
    )


def list_setting_names() -> tuple[str, ...]:
    """Every setting that a bundle has, for the errors of gate files."""
    names = [
        f"{part}.{field.name}"
        for part, kind in (
            ("tokens", TokenIds),
            ("generation", GenerationDefaults),
            ("pixels", PixelBudget),
        )
        for field in dataclasses.fields(kind)
        if not (kind is TokenIds and field.name in _UNUSED_TOKENS)
    ]
    names += [f"vision.{field}" for field in _CUTTING]
    names += [f"special_tokens.{name}" for name in TEMPLATE_TOKENS]
    return (*names, "mrope_rule", "tokenizer", "chat_template")


def _brief(value: str) -> str:
    """A value as it is; of a list of thousands of tokens its beginning and its hash."""
    if len(value) <= MAX_SHOWN:
        return value
    return f"{value[: MAX_SHOWN // 2]}... {_hash(value.encode())}"


def _hash(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()[:16]}"
