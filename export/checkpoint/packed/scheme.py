"""Resolve by name how each layer of a packed checkpoint is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .matrix import Activations, CodeKind

Layout = Literal["awq-gemm", "awq-gemv", "gptq", "gptq_v2", "pack-quantized", "naive-quantized"]
ROW_GROUP = -1  # one scale a row
TENSOR_GROUP = 0  # one scale a tensor
MAX_PATTERN = 10_000  # characters
# A pattern from the internet may backtrack without end; a sane one takes microseconds
PATTERN_SECONDS = 5.0
# What the libraries call the class of every layer that can be packed here
_LINEAR_CLASSES = ("Linear", "Module")


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """How one layer is stored.

    Attributes:
        layout: of its tensors.
        kind, bits: of its codes.
        group_size: inputs that share a scale; ROW_GROUP, TENSOR_GROUP.
        activations: how its input is rounded.
        act_order: the groups need a g_idx.
    """

    layout: Layout
    kind: CodeKind
    bits: int
    group_size: int
    activations: Activations = "float"
    act_order: bool = False


@dataclass(frozen=True, slots=True)
class NamePattern:
    """Which layers a rule is about.

    Attributes:
        how: "name": this layer; "match": a regular expression from the start of the name; "module":
            that, up to the end of a part of the name, or the end of the name as plain text;
            "ending": the end of the name as plain text; "class": a class of modules.
        text: the name, expression or class.
    """

    how: Literal["name", "match", "module", "ending", "class"]
    text: str

    def matches(self, layer: str) -> bool:
        """Whether the layer, by any of its names, is meant.

        Raises:
            ValueError: no regular expression, or one that takes seconds.
        """
        if self.how == "class":
            return self.text in _LINEAR_CLASSES
        names = layer_names(layer)
        if self.how == "name":
            return self.text in names
        if self.how == "ending":
            return any(name.endswith(self.text) for name in names)
        if self.how == "module":
            bounded = rf"(?:{self.text})(?:(?<=\.)|(?=\.|$))"
            return any(name.endswith(self.text) or _matches(bounded, name) for name in names)
        return any(_matches(self.text, name) for name in names)


@dataclass(frozen=True, slots=True)
class SchemeRule:
    """Layers and how they are stored; None: they stay float."""

    patterns: tuple[NamePattern, ...]
    scheme: LayerScheme | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint's configuration says of its packed layers.

    Attributes:
        method: "awq", "gptq" or "compressed-tensors".
        rules: the first that matches a layer decides.
        default: where none matches; None: such a layer stays float.
        remarks: what of the configuration is unknown.
    """

    method: str
    rules: tuple[SchemeRule, ...]
    default: LayerScheme | None
    remarks: tuple[str, ...] = ()

    def scheme_of(self, layer: str) -> LayerScheme | None:
        """How a layer is stored; None: it stays float."""
        for rule in self.rules:
            if any(pattern.matches(layer) for pattern in rule.patterns):
                return rule.scheme
        return self.default


def layer_names(layer: str) -> tuple[str, ...]:
    """The hub's name of a layer, and transformers 5's, by which a newer tool wrote its rules."""
    if layer.startswith("visual."):
        return layer, f"model.{layer}"
    if layer.startswith("model."):
        return layer, f"model.language_model.{layer.removeprefix('model.')}"
    return (layer,)


def check_patterns(patterns: Iterable[NamePattern]) -> tuple[NamePattern, ...]:
    """The patterns, each tried once, so that a bad one is told before any layer is looked at."""
    checked = tuple(patterns)
    for pattern in checked:
        pattern.matches("model.layers.0.self_attn.q_proj")
    return checked


def _matches(pattern: str, name: str) -> bool:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern for layers has {len(pattern)} characters, over {MAX_PATTERN}")
    try:
        import regex  # re can't be stopped
    except ImportError as error:
        raise ValueError(
            "patterns for packed layers need the package regex: pip install vlmedge[export]"
        ) from error
    try:
        re.compile(pattern)  # what the libraries themselves use decides what is one
        return regex.match(pattern, name, timeout=PATTERN_SECONDS) is not None
    except TimeoutError as error:
        raise ValueError(f"the pattern {pattern[:80]!r} takes too long on {name!r}") from error
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"the pattern {pattern[:80]!r} is no regular expression: {error}"
        ) from error
