"""Modules of transformers' Qwen2-VL by our names of linear layers, and what passes through them.

Nothing of torch is imported here: its modules and tensors come from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...quant.compare.layer_rows import pick_rows

# Our names are the checkpoint's; transformers has the same modules in other places
_PLACES = (
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("lm_head", "lm_head"),
)
Rows = tuple[NDArray[np.float32], NDArray[np.float32]]


def find_modules(model: Any, layer: str) -> list[Any]:
    """The modules of a layer: three of "...q_proj+k_proj+v_proj".

    Raises:
        ValueError: this version of transformers has other modules.
    """
    prefix, _, names = layer.rpartition(".")
    paths = [f"{prefix}.{name}".removeprefix(".") for name in names.split("+")]
    try:
        return [model.get_submodule(_place(path)) for path in paths]
    except AttributeError as error:
        raise ValueError(f"transformers' model has no {layer}: {error}") from error


def read_parameter(model: Any, name: str) -> NDArray[np.float32]:
    """A parameter by its name in the checkpoint, float32[...]."""
    return model.get_parameter(_place(name)).detach().float().numpy()


def read_matrix(model: Any, layer: str) -> NDArray[np.float32]:
    """A layer's matrix float32[out, in], those of joined layers one below the other."""
    matrices = [module.weight.detach().float().numpy() for module in find_modules(model, layer)]
    return np.concatenate(matrices)


@contextmanager
def keep_rows(model: Any, layers: Iterable[str], num_inputs: int) -> Iterator[dict[str, Rows]]:
    """While the block runs one input, some rows of every layer's input and output.

    Args:
        model: transformers'.
        layers: by our names.
        num_inputs: of how many inputs this is one, see `layer_rows.pick_rows`.
    """
    kept: dict[str, Rows] = {}
    hooks = []
    try:
        for layer in layers:
            for place, module in enumerate(find_modules(model, layer)):
                hook = _make_hook(kept, layer, place, num_inputs)
                hooks.append(module.register_forward_hook(hook))
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _make_hook(kept: dict[str, Rows], layer: str, place: int, num_inputs: int) -> Any:
    def keep(_module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        rows = pick_rows(len(x), num_inputs)
        y = output.reshape(-1, output.shape[-1])[rows].float().numpy()
        if place == 0:
            kept[layer] = x[rows].float().numpy(), y
        else:
            kept[layer] = kept[layer][0], np.concatenate([kept[layer][1], y], axis=1)

    return keep


def _place(name: str) -> str:
    for ours, theirs in _PLACES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
