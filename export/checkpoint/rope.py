"""Compute the decoder's rotary frequencies from the text config, with or without scaling.

Scaled kinds stretch the frequencies once, from the config alone: "linear", "yarn" (Peng et al.,
arXiv 2309.00071) and "llama3". Those whose frequencies hang on the length of the sequence
("dynamic", "longrope") can't be constants of a graph and are refused. M-RoPE's sections say which
coordinate turns which frequency; scaling knows nothing of them. The rules are those of
transformers 5.24 (`modeling_rope_utils.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RopeKind = Literal["default", "linear", "yarn", "llama3"]
DEFAULT_THETA = 1_000_000.0
DEFAULT_SECTION = (16, 24, 24)
KINDS = ("default", "linear", "yarn", "llama3")
# Given beside the known ones they would change nothing in transformers either: it warns.
_REFUSED = {
    "dynamic": "its frequencies change with the length of the sequence",
    "longrope": "its frequencies change with the length of the sequence",
    "proportional": "it turns a part of each head only, which M-RoPE's sections don't describe",
}


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: high frequencies as they are, low ones divided, a ramp between."""

    factor: float
    original_context: int  # positions the model was trained with
    attention_factor: float  # of cosine and sine
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the ramp's ends at whole frequencies


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequencies of long waves divided, of short ones kept, smooth between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


Scaling = YarnScaling | LinearScaling | Llama3Scaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions of the decoder.

    Attributes:
        theta: base of the frequencies.
        mrope_section: frequencies turned by t, h, w; their sum is head_dim / 2.
        scaling: None: as trained.
    """

    theta: float
    mrope_section: tuple[int, int, int]
    scaling: Scaling | None = None

    @property
    def kind(self) -> RopeKind:
        """As config.json spells it."""
        kinds: dict[type, RopeKind] = {
            YarnScaling: "yarn",
            LinearScaling: "linear",
            Llama3Scaling: "llama3",
        }
        return "default" if self.scaling is None else kinds[type(self.scaling)]

    @property
    def attention_factor(self) -> float:
        """What cosine and sine are multiplied by; 1 but for YaRN."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling) else 1.0

    def stretch_context(self, max_position_embeddings: int) -> int:
        """Positions that the scaled frequencies reach: at least those that config.json names."""
        scaling = self.scaling
        if isinstance(scaling, YarnScaling | Llama3Scaling):
            return max(max_position_embeddings, int(scaling.factor * scaling.original_context))
        return max_position_embeddings

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Angle of one position, float32[head_dim / 2], in transformers' order of operations."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        powers = (np.float32(self.theta) ** exponents).astype(np.float32)
        inv_freq = (1 / powers).astype(np.float32)
        match self.scaling:
            case LinearScaling(factor):
                return (inv_freq / np.float32(factor)).astype(np.float32)
            case YarnScaling():
                return _stretch_yarn(self.scaling, powers, head_dim, self.theta)
            case Llama3Scaling():
                return _stretch_llama3(self.scaling, inv_freq)
        return inv_freq


def read_rope(text: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> RopeSpec:
    """Read `rope_scaling` or `rope_parameters` and `rope_theta` of a text config.

    Args:
        text: the text config, nested, or config.json itself in the flat layout.
        head_dim: of the decoder.
        max_position_embeddings: as config.json has it; YaRN's and Llama 3's original context where
            they name none.

    Raises:
        ValueError: a kind or value that is not supported, by name.
    """
    rope = _find_parameters(text)
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "default" if kind == "mrope" else kind
    if kind not in KINDS:
        reason = _REFUSED.get(str(kind), "it is unknown")
        raise ValueError(
            f"config.json: rope type {kind!r} is not supported, only 'mrope', "
            f"{', '.join(map(repr, KINDS))}: {reason}"
        )
    for section in (rope, text):
        if section.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(
                f"config.json: partial_rotary_factor is {section['partial_rotary_factor']!r}: "
                "heads that turn in part are not supported"
            )
    theta = rope["rope_theta"] if "rope_theta" in rope else text.get("rope_theta", DEFAULT_THETA)
    section = _read_section(rope.get("mrope_section", list(DEFAULT_SECTION)), head_dim)
    # A nested config may keep the original context beside its rotary settings; there it wins
    original = text.get("original_max_position_embeddings") if text is not rope else None
    if "model_type" in text and text["model_type"] == "qwen2_vl":  # flat: transformers overlooks it
        original = None
    if original is None:
        original = rope.get("original_max_position_embeddings", max_position_embeddings)
    return RopeSpec(
        _positive("rope_theta", theta),
        section,
        _read_scaling(kind, rope, original, max_position_embeddings),
    )


def _find_parameters(text: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("rope_scaling", "rope_parameters"):  # transformers 5 keeps this order
        if rope := text.get(key):
            if not isinstance(rope, Mapping):
                raise ValueError(f"config.json: {key} is {rope!r:.80}, an object is needed")
            return rope
    return {}


def _read_section(section: Any, head_dim: int) -> tuple[int, int, int]:
    if (
        not isinstance(section, list)
        or len(section) != 3
        or not all(type(size) is int and size >= 0 for size in section)
        or sum(section) != head_dim // 2
    ):
        raise ValueError(
            f"mrope_section is {section!r:.80}, three sizes with the sum {head_dim // 2} are needed"
        )
    return section[0], section[1], section[2]


def _read_scaling(
    kind: str, rope: Mapping[str, Any], original: Any, max_position_embeddings: int
) -> Scaling | None:
    if kind == "default":
        return None
    if "factor" not in rope:
        raise ValueError(f"config.json: rope type {kind!r} needs a factor, there is none")
    if kind == "linear":
        return LinearScaling(_positive("factor", rope["factor"]))
    if type(original) is not int or original <= 0:
        raise ValueError(
            f"config.json: original_max_position_embeddings is {original!r:.80}, "
            "a positive number of positions is needed"
        )
    if kind == "llama3":
        low = _positive("low_freq_factor", rope.get("low_freq_factor"))
        high = _positive("high_freq_factor", rope.get("high_freq_factor"))
        if low >= high:
            raise ValueError(
                f"config.json: low_freq_factor is {low:g}, under high_freq_factor {high:g} needed"
            )
        return Llama3Scaling(_positive("factor", rope["factor"]), low, high, original)
    factor = rope["factor"]
    factor = max_position_embeddings / original if factor is None else factor
    factor = _positive("factor", factor)
    return YarnScaling(
        factor,
        original,
        _read_attention_factor(rope, factor),
        _positive("beta_fast", rope.get("beta_fast") or 32),
        _positive("beta_slow", rope.get("beta_slow") or 1),
        bool(rope.get("truncate", True)),
    )


def _read_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature: named, or 0.1 ln(factor) + 1, or the ratio of two such."""
    if (named := rope.get("attention_factor")) is not None:
        return _positive("attention_factor", named)

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and of_all:
        return temperature(_positive("mscale", mscale)) / temperature(
            _positive("mscale_all_dim", of_all)
        )
    return temperature(1.0)


def _stretch_yarn(
    scaling: YarnScaling, powers: NDArray[np.float32], head_dim: int, theta: float
) -> NDArray[np.float32]:
    def find_frequency(num_rotations: float) -> float:
        """The frequency, counted in channels, that turns so often over the original context."""
        turns = scaling.original_context / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = find_frequency(scaling.beta_fast), find_frequency(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    index = np.arange(head_dim // 2, dtype=np.float32)
    divided = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    kept = (1 - divided).astype(np.float32)
    as_trained = (1 / powers).astype(np.float32)
    stretched = (1 / (np.float32(scaling.factor) * powers)).astype(np.float32)
    return (stretched * (1 - kept) + as_trained * kept).astype(np.float32)


def _stretch_llama3(scaling: Llama3Scaling, inv_freq: NDArray[np.float32]) -> NDArray[np.float32]:
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    wave = (np.float32(2 * math.pi) / inv_freq).astype(np.float32)
    longest, shortest = scaling.original_context / low, scaling.original_context / high
    result = np.where(wave > longest, inv_freq / np.float32(factor), inv_freq)
    share = (np.float32(scaling.original_context) / wave - np.float32(low)) / np.float32(high - low)
    smooth = (1 - share) * result / np.float32(factor) + share * result
    is_between = (wave >= shortest) & (wave <= longest)
    return np.where(is_between, smooth, result).astype(np.float32)


def _positive(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"config.json: {key} is {value!r:.80}, a positive number is needed")
    return float(value)
