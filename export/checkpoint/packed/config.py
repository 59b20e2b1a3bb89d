"""Read from quantization_config how layers are packed, or refuse the format by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.json_file import read_json
from ..keys.quantization import AWQ, GPTQ, RULES
from ..keys.rules import check_keys
from .compressed_config import read_compressed
from .config_values import flag, group_size, integer, strings
from .scheme import (
    LayerScheme,
    Layout,
    NamePattern,
    Quantization,
    SchemeRule,
    check_patterns,
)

# Files of older quantizers, which say the same in a file of their own
OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
SUPPORTED = "AWQ (gemm, gemv), GPTQ (4 and 8 bits) and compressed-tensors (W4A16, W8A16, W8A8, FP8)"
_EXPORT_FLOAT = "export the float checkpoint it was made from and quantize it with vlmedge quantize"
_OTHER_METHODS = {
    "bitsandbytes": "it is made to be unpacked on a GPU; merge and save the float model, or "
    + _EXPORT_FLOAT,
    "fp8": "block-wise FP8 has no graph here; " + _EXPORT_FLOAT,
    "auto-round": "save it in AutoRound's auto_gptq or auto_awq format, or " + _EXPORT_FLOAT,
}


def read_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How the layers of a checkpoint are packed; None for a float one.

    Args:
        folder: of the checkpoint; older files beside config.json are read where that says nothing.
        config: config.json.

    Raises:
        ValueError: a format or setting that is not supported, by its name.
    """
    found = _find(folder, config)
    if found is None:
        return None
    raw, method = found
    if method == "awq":
        return _read_awq(raw)
    if method == "gptq":
        return _read_gptq(raw)
    if method == "compressed-tensors":
        return read_compressed(raw)
    advice = _OTHER_METHODS.get(method, _EXPORT_FLOAT)
    raise ValueError(
        f"the checkpoint is packed by {method[:80]!r}; only {SUPPORTED} are read: {advice}"
    )


def _find(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """The configuration and its method, from where any version of the tools has put it."""
    text = config.get("text_config")
    places = [(f"config.json: {key}", config.get(key)) for key in _KEYS]
    if isinstance(text, Mapping):
        places += [(f"config.json: text_config.{key}", text.get(key)) for key in _KEYS]
    named = [(where, value) for where, value in places if value is not None]
    for where, value in named:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r:.80}, an object is needed")
        if value != named[0][1]:
            raise ValueError(f"{named[0][0]} and {where} say different things")
    older = [
        ({**read_json(folder / name)}, method)
        for name, method in OLDER_FILES.items()
        if (folder / name).exists()
    ]
    if not named:
        return (older[0][0], str(older[0][0].get("quant_method", older[0][1]))) if older else None
    where, raw = named[0]
    method = raw.get("quant_method")
    if not isinstance(method, str):
        if raw.get("load_in_4bit") or raw.get("load_in_8bit"):
            method = "bitsandbytes"
        elif "config_groups" in raw:
            method = "compressed-tensors"
        else:
            raise ValueError(f"{where}: quant_method is {method!r:.80}, a name is needed")
    for other, _ in older:
        for key in ("bits", "group_size", "desc_act", "checkpoint_format"):
            if key in raw and key in other and raw[key] != other[key]:
                raise ValueError(
                    f"{where} and the quantizer's own file beside it disagree about {key}: "
                    f"{raw[key]!r:.80} and {other[key]!r:.80}"
                )
    return raw, "compressed-tensors" if method == "sparseml" else method.lower()


_KEYS = ("quantization_config", "compression_config")


def _read_awq(raw: Mapping[str, Any]) -> Quantization:
    remarks = check_keys(AWQ, raw, RULES)
    bits = integer(AWQ, raw, "bits", "w_bit", default=4)
    if bits != 4:
        raise ValueError(f"{AWQ}: bits is {bits}, only 4 is supported")
    version = _text(AWQ, raw, "version", "format", "checkpoint_format", default="gemm")
    layouts: dict[str, Layout] = {"gemm": "awq-gemm", "gemv": "awq-gemv"}
    if version not in layouts or raw.get("backend") == "llm-awq":
        raise ValueError(
            f"{AWQ}: version is {version!r:.80}, only gemm and gemv are read: "
            "pack it again with version gemm"
        )
    flag(AWQ, raw, "zero_point", True)
    scheme = LayerScheme(
        layouts[version],
        "integer",
        4,
        group_size(AWQ, raw, "group_size", "q_group_size", default=128),
    )
    # transformers never packs the head with this method
    kept = [*strings(AWQ, raw, "modules_to_not_convert"), "lm_head"]
    patterns = check_patterns(NamePattern("module", text) for text in kept)
    return Quantization("awq", (SchemeRule(patterns, None),), scheme, remarks)


def _read_gptq(raw: Mapping[str, Any]) -> Quantization:
    remarks = check_keys(GPTQ, raw, RULES)
    layout = _gptq_layout(raw)
    dtype = raw.get("pack_dtype")
    if dtype not in (None, "int32"):
        raise ValueError(f"{GPTQ}: pack_dtype is {dtype!r:.80}, only int32 is supported")
    flag(GPTQ, raw, "sym", True)
    default = LayerScheme(
        layout,
        "integer",
        _gptq_bits(GPTQ, raw),
        group_size(GPTQ, raw, "group_size", default=128),
        act_order=flag(GPTQ, raw, "desc_act", False),
    )
    rules = [
        SchemeRule(
            check_patterns(
                NamePattern("module", text) for text in strings(GPTQ, raw, "modules_to_not_convert")
            ),
            None,
        )
    ]
    rules += _dynamic_rules(raw, default)
    if not flag(GPTQ, raw, "lm_head", False):
        rules.append(SchemeRule((NamePattern("name", "lm_head"),), None))
    blocks = raw.get("modules_in_block_to_quantize")
    if blocks is None:
        return Quantization("gptq", tuple(rules), default, remarks)
    if not isinstance(blocks, list):
        raise ValueError(
            f"{GPTQ}: modules_in_block_to_quantize is {blocks!r:.80}, a list is needed"
        )
    names = [name for block in blocks for name in (block if isinstance(block, list) else [block])]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{GPTQ}: modules_in_block_to_quantize must hold names of layers")
    rules.append(SchemeRule(tuple(NamePattern("ending", name) for name in names), default))
    return Quantization("gptq", tuple(rules), None, remarks)


def _gptq_layout(raw: Mapping[str, Any]) -> Layout:
    form = _text(GPTQ, raw, "checkpoint_format", "format", default="gptq")
    if flag(GPTQ, raw, "is_marlin_format", False):
        form = "marlin"
    if form == "gptq":
        return "gptq"
    if form == "gptq_v2":
        return "gptq_v2"
    raise ValueError(
        f"{GPTQ}: format is {form!r:.80}, only gptq and gptq_v2 are read: save it again as gptq"
    )


def _dynamic_rules(raw: Mapping[str, Any], default: LayerScheme) -> list[SchemeRule]:
    """GPTQModel's rules of single layers: "-:" keeps float, "+:" or nothing changes settings."""
    dynamic = raw.get("dynamic")
    if dynamic is None or dynamic is False:
        return []
    if not isinstance(dynamic, Mapping):
        raise ValueError(f"{GPTQ}: dynamic is {dynamic!r:.80}, an object is needed")
    rules = []
    for pattern, changes in dynamic.items():
        where = f"{GPTQ}: dynamic rule {pattern[:80]!r}"
        text = pattern.removeprefix("-:").removeprefix("+:")
        patterns = check_patterns([NamePattern("match", text)])
        if pattern.startswith("-:"):
            rules.append(SchemeRule(patterns, None))
            continue
        if not isinstance(changes, Mapping):
            raise ValueError(f"{where} holds {changes!r:.80}, an object is needed")
        merged = {"bits": default.bits, "group_size": default.group_size, **changes}
        check_keys(GPTQ, merged, RULES)
        form = merged.get("format", merged.get("checkpoint_format", default.layout))
        if form != default.layout:
            raise ValueError(f"{where}: format {form!r:.80} differs from the others' format")
        rules.append(
            SchemeRule(
                patterns,
                LayerScheme(
                    default.layout,
                    "integer",
                    _gptq_bits(where, merged),
                    group_size(where, merged, "group_size", default=128),
                    act_order=flag(where, merged, "desc_act", default.act_order),
                ),
            )
        )
    return rules


def _gptq_bits(where: str, raw: Mapping[str, Any]) -> int:
    bits = integer(where, raw, "bits", default=None)
    if bits not in (4, 8):
        raise ValueError(f"{where}: bits is {bits}, only 4 and 8 are supported")
    return bits


def _text(where: str, raw: Mapping[str, Any], *keys: str, default: str) -> str:
    values = {key: raw[key] for key in keys if raw.get(key) is not None}
    for key, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} is {value!r:.80}, a name is needed")
    return next(iter(values.values()), default).lower()
