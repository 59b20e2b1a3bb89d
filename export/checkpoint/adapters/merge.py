"""Put LoRA adapters onto a checkpoint's tensors; they are merged while the weights are streamed.

A merged row is W + scale * B @ A in float32, rounded once, to the format that is written. Modules
that an adapter stores whole, and its biases, take the base's place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ....runtime.files.path_kind import is_checkpoint
from ..config import ModelSpec
from ..lm_head import EMBEDDINGS, LM_HEAD
from ..shapes import FLOAT_DTYPES
from ..weights.safetensors_header import read_header
from ..weights.same_values import are_same
from ..weights.tensor_source import LowRank, TensorSource, forget_factors
from ..weights.tensors import few_names, hub_name
from .config import CONFIG_NAME, AdapterConfig, read_adapter_config

WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME)
_ROOT = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_OTHER_PARTS = {
    ".lora_embedding_": "an update of the embeddings",
    ".lora_magnitude_vector": "DoRA",
    ".lora_B.bias": "a bias of lora_B",
    ".token_adapter.": "single trained tokens",
}


def choose_base(
    checkpoint: str | Path, adapters: Sequence[Path] | None
) -> tuple[str | Path, tuple[Path, ...]]:
    """The base of an export and the adapters on it; the checkpoint may itself be an adapter.

    Args:
        checkpoint: folder of a checkpoint or of an adapter, or a hub id.
        adapters: folders of adapters; (): the base alone; None: nobody has said.

    Raises:
        ValueError: a base with an adapter beside it and nothing said, an adapter without its base,
            or a folder that is no adapter.
    """
    folder = Path(checkpoint)
    for adapter in adapters or ():
        if not (adapter / CONFIG_NAME).is_file():
            raise ValueError(f"{adapter} is no adapter: no {CONFIG_NAME} in it")
    if not (folder / CONFIG_NAME).is_file():
        return checkpoint, tuple(adapters or ())
    if is_checkpoint(folder, besides=(WEIGHTS_NAME, "adapter_model.bin")):
        if adapters is None:
            raise ValueError(
                f"{folder} holds a model and an adapter ({CONFIG_NAME}): give --adapter {folder} "
                "to merge it, or --no-adapter to export the model without it"
            )
        return checkpoint, tuple(adapters)
    if adapters == ():
        raise ValueError(f"{folder} is an adapter without a model: --no-adapter leaves nothing")
    return _find_base(folder), (folder, *(adapters or ()))


def _find_base(folder: Path) -> str:
    config = read_adapter_config(folder)
    if config.base is None:
        raise ValueError(
            f"{folder / CONFIG_NAME} names no base_model_name_or_path: give the base, and the "
            "adapter with --adapter"
        )
    for place in (Path(config.base), folder / config.base):
        if place.is_dir():
            if config.base != "." and not place.samefile(folder):
                return str(place)
            raise ValueError(f"{folder / CONFIG_NAME} names its own folder as its base")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", config.base):
        raise ValueError(
            f"the base of {folder} is not at {config.base}: give the base, and the adapter with "
            "--adapter"
        )
    if config.revision not in (None, "", "main"):
        raise ValueError(
            f"{folder} needs revision {config.revision!r:.80} of {config.base}: download it, give "
            "its folder, and the adapter with --adapter"
        )
    return config.base


def apply_adapter(
    folder: Path, spec: ModelSpec, tensors: Mapping[str, TensorSource]
) -> tuple[ModelSpec, dict[str, TensorSource]]:
    """The tensors of a model with one adapter on them, and the spec, whose head it may untie.

    Args:
        folder: of the adapter.
        spec: of the model.
        tensors: the model's, by the hub's names; adapters may be on them already.

    Raises:
        ValueError: an adapter that is refused, or doesn't fit the model.
    """
    config = read_adapter_config(folder)
    factors, whole = _read_adapter(folder)
    merged = dict(tensors)
    try:
        _check_head(spec, factors)
        spec = _replace(config, spec, merged, whole)
        _add(config, merged, factors)
    except ValueError as error:
        raise ValueError(f"adapter {folder}: {error}") from error
    forget_factors()
    return spec, merged


def _read_adapter(folder: Path) -> tuple[dict[str, dict[str, TensorSource]], dict]:
    """Layer -> its A and B; module's tensor -> what takes its place; names as they were trained."""
    path = folder / WEIGHTS_NAME
    if beside := sorted(file.name for file in folder.glob("non_lora*")):
        raise ValueError(
            f"{folder / beside[0]} holds trained weights beside the adapter, which peft doesn't "
            "merge: let the trainer merge the model, and export the result"
        )
    if not path.exists():
        others = any(folder.glob("adapter_model.bin"))
        hint = ": adapter_model.bin is not read, save it with safe_serialization" if others else ""
        raise ValueError(f"{folder} has no {WEIGHTS_NAME}{hint}")
    factors: dict[str, dict[str, TensorSource]] = {}
    whole: dict[str, TensorSource] = {}
    for name, tensor in read_header(path).items():
        where = f"{path}: {name}"
        if not name.startswith(_ROOT):
            raise ValueError(f"{where} does not begin with {_ROOT}, as peft saves it")
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{where} is {tensor.dtype}, needed one of {', '.join(FLOAT_DTYPES)}")
        short = name.removeprefix(_ROOT)
        if part := next((part for part in _OTHER_PARTS if part in short), None):
            raise ValueError(
                f"{where} is {_OTHER_PARTS[part]}, which can't be merged here: call peft's "
                "merge_and_unload()"
            )
        if found := _FACTOR.fullmatch(short):
            factors.setdefault(found[1], {})[found[2]] = tensor
        else:
            whole[short.replace(".base_layer.", ".")] = tensor
    return factors, whole


def _replace(
    config: AdapterConfig,
    spec: ModelSpec,
    merged: dict[str, TensorSource],
    whole: Mapping[str, TensorSource],
) -> ModelSpec:
    """Put what is stored whole in the base's place."""
    named = {hub_name(name): (name, tensor) for name, tensor in whole.items()}
    known = set(merged) | {LM_HEAD}
    if strange := sorted(name for name in named if name not in known):
        raise ValueError(f"the model has no {few_names(strange)}")
    for name, (_, tensor) in named.items():
        needed = merged[EMBEDDINGS if name == LM_HEAD else name].shape
        if tensor.shape != needed:
            raise ValueError(f"{name} is {list(tensor.shape)}, the model needs {list(needed)}")
    if spec.tied_lm_head and (LM_HEAD in named or EMBEDDINGS in named):
        stored = [named.pop(name) for name in (EMBEDDINGS, LM_HEAD) if name in named]
        if any(config.is_saved(name.removesuffix(".weight")) for name, _ in stored):
            # peft trains a copy of a saved module, and leaves the one tied to it as it was.
            spec = dataclasses.replace(spec, tied_lm_head=False)
            merged[LM_HEAD] = merged[EMBEDDINGS]
            named |= {hub_name(name): (name, tensor) for name, tensor in stored}
        elif not are_same(stored[0][1], stored[-1][1]):
            raise ValueError("it stores different values for the embeddings and the tied lm_head")
        else:  # stored because of save_embedding_layers: the shared matrix itself
            merged[EMBEDDINGS] = stored[0][1]
    for name, (_, tensor) in named.items():
        merged[name] = tensor
    return spec


def _check_head(spec: ModelSpec, layers: Iterable[str]) -> None:
    """Refuse an update of a matrix that is two: peft's own merge would change both."""
    if spec.tied_lm_head and any(hub_name(f"{layer}.weight") == LM_HEAD for layer in layers):
        raise ValueError(
            "it updates an lm_head that is tied to the embeddings, so merging would change both: "
            "untie them in the base (tie_word_embeddings false, lm_head.weight stored)"
        )


def _add(
    config: AdapterConfig,
    merged: dict[str, TensorSource],
    factors: Mapping[str, Mapping[str, TensorSource]],
) -> None:
    """Hang the updates on the matrices."""
    if not factors:
        raise ValueError(f"{WEIGHTS_NAME} holds no lora_A and lora_B")
    targets = {hub_name(f"{layer}.weight"): layer for layer in factors}
    if len(targets) < len(factors):
        raise ValueError("a layer is there under two names")
    if strange := sorted(layer for name, layer in targets.items() if name not in merged):
        raise ValueError(f"the model has no layer for {few_names(strange)}")
    if stray := sorted(layer for layer in factors if not config.is_target(layer)):
        raise ValueError(f"target_modules and its kin do not name {few_names(stray)}, yet it has")
    for name in _list_layers(config, merged, list(factors)):
        if name not in targets:
            raise ValueError(f"target_modules names {name}, but its lora_A and lora_B are missing")
    for name, layer in targets.items():
        update = _make_update(config, layer, factors[layer], merged[name])
        merged[name] = dataclasses.replace(merged[name], updates=(*merged[name].updates, update))


def _list_layers(
    config: AdapterConfig, merged: Mapping[str, TensorSource], trained: Sequence[str]
) -> list[str]:
    """Matrices that peft would put the adapter on, by the hub's names."""
    is_new = any(layer.startswith(("model.language_model.", "model.visual.")) for layer in trained)
    found = []
    for name, tensor in merged.items():
        layer = name.removesuffix(".weight")
        if len(tensor.shape) != 2 or layer == name or name in (EMBEDDINGS, LM_HEAD):
            continue
        if is_new:
            layer = re.sub(r"^model\.", "model.language_model.", layer)
            layer = re.sub(r"^visual\.", "model.visual.", layer)
        if config.is_target(layer):
            found.append(name)
    return found


def _make_update(
    config: AdapterConfig, layer: str, pair: Mapping[str, TensorSource], base: TensorSource
) -> LowRank:
    if set(pair) != {"A", "B"}:
        raise ValueError(f"{layer} has only lora_{next(iter(pair))}")
    if len(base.shape) != 2:
        raise ValueError(f"{layer} is no matrix but {list(base.shape)}: call merge_and_unload()")
    rank, (rows, columns) = config.rank_of(layer), base.shape
    for part, needed in (("A", (rank, columns)), ("B", (rows, rank))):
        if pair[part].shape != needed:
            raise ValueError(
                f"{layer}.lora_{part} is {list(pair[part].shape)}, rank {rank} and the model need "
                f"{list(needed)}"
            )
    return LowRank(pair["A"], pair["B"], config.scale_of(layer))
