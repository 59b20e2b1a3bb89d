"""Read a LoRA adapter's adapter_config.json: which layers it updates, and how strongly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.json_file import read_json
from ..keys.adapter import RULES, SECTION
from ..keys.rules import check_keys

CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """An adapter's settings as peft reads them.

    Attributes:
        base: path or hub id of its base, if it names one.
        revision: of the base on the hub.
        targets: names of layers, a regular expression of whole names, or "all-linear".
        excluded: like `targets`.
        saved: modules that are stored whole.
        layers: numbers of the layers it is on; None: of all.
        layer_patterns: words before a layer's number.
    """

    base: str | None
    revision: str | None
    rank: int
    alpha: float
    is_rank_stabilized: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | str
    excluded: tuple[str, ...] | str
    saved: tuple[str, ...]
    layers: tuple[int, ...] | None
    layer_patterns: tuple[str, ...]

    def rank_of(self, layer: str) -> int:
        """The rank at a layer, by its name in the model that was trained."""
        return _find_pattern(self.ranks, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor of B @ A at a layer."""
        rank, alpha = self.rank_of(layer), _find_pattern(self.alphas, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def is_target(self, layer: str) -> bool:
        """Whether peft puts the adapter on a layer, by its name in the model that was trained."""
        if _is_named(self.excluded, layer) or self.is_saved(layer):
            return False
        if self.targets == "all-linear":
            return layer != "lm_head"
        if not isinstance(self.targets, str) and layer in self.targets:
            return True  # a whole name counts whatever the layers' numbers
        if not _is_named(self.targets, layer):
            return False
        if isinstance(self.targets, str) or not self.layers:
            return True
        number = self._find_number(layer)
        return number is not None and number in self.layers

    def is_saved(self, module: str) -> bool:
        """Whether a module, or one around it, is stored whole."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved)

    def _find_number(self, layer: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){word}\.(\d+)\." for word in self.layer_patterns]
        for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."]:
            if found := re.match(pattern, layer):
                return int(found[1])
        return None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check adapter_config.json.

    Raises:
        ValueError: another kind of adapter than LoRA, a setting that is refused, or a malformed
            file.
    """
    path = folder / CONFIG_NAME
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path}: peft_type is {kind!r:.80}, only LORA can be merged here: merge others with "
            "peft's merge_and_unload(), where they can be merged at all"
        )
    try:
        check_keys(SECTION, config, RULES)
        known = {rule.key for rule in RULES}
        if unknown := sorted(key for key, value in config.items() if key not in known and value):
            raise ValueError(
                f"unknown keys {', '.join(unknown):.200}: written by a newer peft; merge the "
                "adapter with it (merge_and_unload())"
            )
        return _read(config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _read(config: Mapping[str, Any]) -> AdapterConfig:
    layers = config.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers or []
    if not isinstance(layers, list) or not all(type(number) is int for number in layers):
        raise ValueError(f"layers_to_transform is {layers!r:.80}, numbers of layers are needed")
    patterns = _read_names(config, "layers_pattern")
    targets = _read_names(config, "target_modules")
    ranks = _read_numbers(config, "rank_pattern", whole=True)
    alphas = _read_numbers(config, "alpha_pattern")
    saved = _read_names(config, "modules_to_save")
    saved = (saved,) if isinstance(saved, str) else saved
    excluded = _read_names(config, "exclude_modules")
    _check_patterns(
        [
            *ranks,
            *alphas,
            *([excluded] if isinstance(excluded, str) else ()),
            *saved,
            *([targets] if isinstance(targets, str) else ()),
            *((patterns,) if isinstance(patterns, str) else patterns),
        ]
    )
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return AdapterConfig(
        base=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) else None,
        rank=_read_number(config.get("r", 8), "r", whole=True),
        alpha=_read_number(config.get("lora_alpha", 8), "lora_alpha"),
        is_rank_stabilized=_read_flag(config, "use_rslora"),
        ranks=ranks,
        alphas=alphas,
        targets=targets,
        excluded=excluded,
        saved=saved,
        layers=tuple(layers) or None,
        layer_patterns=((patterns,) if patterns else ()) if isinstance(patterns, str) else patterns,
    )


def _find_pattern(values: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of the first pattern that a name ends with."""
    for pattern, value in values.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _is_named(names: tuple[str, ...] | str, layer: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _read_names(config: Mapping[str, Any], key: str) -> tuple[str, ...] | str:
    value = config.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r:.80}, a list of names is needed")
    return tuple(value)


def _read_numbers(config: Mapping[str, Any], key: str, *, whole: bool = False) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r:.80}, an object of numbers is needed")
    return {name: _read_number(number, key, whole=whole) for name, number in value.items()}


def _read_number(value: Any, key: str, *, whole: bool = False) -> Any:
    is_number = type(value) is int or (type(value) is float and not whole)
    if not is_number or not math.isfinite(value) or (whole and value < 1):
        raise ValueError(f"{key} is {value!r:.80}, a {'whole number' if whole else 'number'}")
    return value


def _read_flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key) or False
    if value not in (True, False):
        raise ValueError(f"{key} is {value!r:.80}, true or false is needed")
    return value


def _check_patterns(patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r:.80} is no regular expression: {error}") from error
