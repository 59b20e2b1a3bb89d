"""Read the quantization_config of compressed-tensors: groups of targets and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..keys.quantization import ARGS, COMPRESSED, GROUP, RULES
from ..keys.rules import check_keys
from .config_values import flag, group_size, integer, strings
from .matrix import Activations
from .scheme import (
    ROW_GROUP,
    TENSOR_GROUP,
    LayerScheme,
    Layout,
    NamePattern,
    Quantization,
    SchemeRule,
    check_patterns,
)

_LAYOUTS: dict[str, Layout] = {
    "pack-quantized": "pack-quantized",
    "int-quantized": "naive-quantized",
    "float-quantized": "naive-quantized",
    "naive-quantized": "naive-quantized",
}
_READ = "W4A16, W8A16, W8A8 and FP8 with a scale a row or a tensor are read"


def read_compressed(raw: Mapping[str, Any]) -> Quantization:
    """Read the configuration of compressed-tensors.

    Raises:
        ValueError: a setting that is not supported, by its name.
    """
    remarks = check_keys(COMPRESSED, raw, RULES)
    _check_whole(raw)
    whole = raw.get("format")
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"{COMPRESSED}: config_groups is {groups!r:.80}, groups are needed")
    targets: dict[NamePattern, LayerScheme] = {}
    for name, group in groups.items():
        where = f"{COMPRESSED}: group {name[:80]!r}"
        if not isinstance(group, Mapping):
            raise ValueError(f"{where} is {group!r:.80}, an object is needed: write out its scheme")
        remarks += check_keys(GROUP, group, RULES)
        scheme = _read_scheme(where, group, whole)
        for target in strings(where, group, "targets"):
            pattern = _pattern(target)
            if targets.setdefault(pattern, scheme) != scheme:
                raise ValueError(f"{where}: {target[:80]!r} is the target of two groups")
    ignored = SchemeRule(
        check_patterns(_pattern(text) for text in strings(COMPRESSED, raw, "ignore")), None
    )
    # As the library resolves them: a name before an expression before a class
    rank = {"name": 0, "match": 1, "class": 2}
    ordered = sorted(targets, key=lambda pattern: (rank[pattern.how], pattern.text))
    check_patterns(ordered)
    rules = tuple(SchemeRule((pattern,), targets[pattern]) for pattern in ordered)
    return Quantization(
        "compressed-tensors", (ignored, *rules), None, tuple(dict.fromkeys(remarks))
    )


def _check_whole(raw: Mapping[str, Any]) -> None:
    sparsity = raw.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"):
        raise ValueError(f"{COMPRESSED}: sparsity_config is {sparsity!r:.80}: sparsity is not read")
    if transform := raw.get("transform_config"):
        raise ValueError(
            f"{COMPRESSED}: transform_config is {transform!r:.80}: transforms have no graph here"
        )
    status = raw.get("quantization_status", "compressed")
    if status != "compressed":
        raise ValueError(
            f"{COMPRESSED}: quantization_status is {status!r:.80}, only 'compressed' is read: "
            "save the model with save_compressed=True"
        )


def _pattern(target: str) -> NamePattern:
    if target.startswith("re:"):
        return NamePattern("match", target.removeprefix("re:"))
    # A class has no dot in its name, and every layer but the head has one
    if "." in target or target == "lm_head":
        return NamePattern("name", target)
    return NamePattern("class", target)


def _read_scheme(where: str, group: Mapping[str, Any], whole: Any) -> LayerScheme:
    form = group.get("format")
    form = whole if form is None else form
    layout = _LAYOUTS.get(form) if isinstance(form, str) else None
    if layout is None:
        raise ValueError(f"{where}: format is {form!r:.80}, needed one of {', '.join(_LAYOUTS)}")
    weights = _args(where, group, "weights")
    if weights is None:
        raise ValueError(f"{where} packs no weights: activations alone are not supported")
    if flag(where, weights, "dynamic", False):
        raise ValueError(f"{where}: weights with dynamic scales are not supported")
    bits = integer(where, weights, "num_bits", default=8)
    number, symmetric = _number(where, weights), flag(where, weights, "symmetric", True)
    supported = (number == "int" and bits in (4, 8)) or (number == "float" and bits == 8)
    if not supported or (number == "float" and not symmetric):
        raise ValueError(
            f"{where}: {'symmetric' if symmetric else 'asymmetric'} weights of type {number} with "
            f"{bits} bits are not supported; {_READ}"
        )
    if number == "float" and layout == "pack-quantized":
        raise ValueError(f"{where}: format pack-quantized holds integers, the weights are float")
    inputs = _activations(where, group, number, bits)
    size = _weight_group(where, weights)
    if number == "float" and size > 0:
        raise ValueError(f"{where}: FP8 weights with groups are not supported; {_READ}")
    kind = "integer" if number == "int" else "float8_e4m3fn"
    # "weight" and "static" order the calibration, and leave the groups as they lie
    act_order = weights.get("actorder") in ("group", "dynamic", True)
    return LayerScheme(layout, kind, bits, size, inputs, act_order)


def _args(where: str, group: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    args = group.get(key)
    if args is None:
        return None
    if not isinstance(args, Mapping):
        raise ValueError(f"{where}: {key} is {args!r:.80}, an object is needed")
    check_keys(ARGS, args, RULES)
    return args


def _number(where: str, args: Mapping[str, Any]) -> str:
    number = args.get("type")
    number = "int" if number is None else number
    if number not in ("int", "float"):
        raise ValueError(f"{where}: type is {number!r:.80}, int or float is needed")
    return str(number)


def _weight_group(where: str, weights: Mapping[str, Any]) -> int:
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "tensor":
        return TENSOR_GROUP
    if strategy == "channel":
        return ROW_GROUP
    if strategy != "group":
        raise ValueError(
            f"{where}: weights of strategy {strategy!r:.80} are not supported; {_READ}"
        )
    found = group_size(where, weights, "group_size", default=None)
    if found == ROW_GROUP:
        raise ValueError(f"{where}: strategy group needs a positive group_size, it has -1")
    return found


def _activations(where: str, group: Mapping[str, Any], number: str, bits: int) -> Activations:
    args = _args(where, group, "input_activations")
    if args is None:
        return "float"
    dynamic, strategy = args.get("dynamic", False), args.get("strategy")
    same = integer(where, args, "num_bits", default=8) == bits == 8
    if not same or _number(where, args) != number:
        raise ValueError(
            f"{where}: input_activations of other bits or type than the weights'; {_READ}"
        )
    if not flag(where, args, "symmetric", True):
        raise ValueError(f"{where}: asymmetric input_activations are not supported")
    if dynamic is True and strategy == "token":
        return "dynamic"
    if dynamic is False and strategy in (None, "tensor") and args.get("group_size") is None:
        return "static"
    raise ValueError(
        f"{where}: input_activations of strategy {strategy!r:.80} with dynamic {dynamic!r:.80} are "
        "not supported: dynamic token and static tensor are"
    )
