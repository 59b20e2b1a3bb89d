"""Write the float weights that a packed checkpoint means, for the reference to load.

transformers loads AWQ and GPTQ with libraries of their own, which need a GPU; what it would compute
is the model of these weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..checkpoint.open import Checkpoint
from ..checkpoint.packed.config import OLDER_FILES
from ..checkpoint.packed.matrix import dequantize
from ..graphs.weights import float_weight

_KEYS = ("quantization_config", "compression_config")


def is_packed(folder: Path) -> bool:
    """Whether a checkpoint says that its weights are packed."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = any(config.get(key) for key in _KEYS)
    return named or any((folder / name).exists() for name in OLDER_FILES)


def write_float_folder(source: Checkpoint, target: Path) -> None:
    """Write a float32 checkpoint of a packed one; its small files are copied.

    Args:
        source: opened, with packed layers.
        target: an empty folder; it gets 4 bytes for each weight.

    Raises:
        ValueError: a layer's numbers make no sense.
        OSError: no space.
    """
    from safetensors.numpy import save_file

    for path in source.folder.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin") or "index" in path.name
        if path.is_file() and not is_weights and path.name not in OLDER_FILES:
            (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    for key in _KEYS:
        config.pop(key, None)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for name, tensor in source.tensors.items():
        blocks = float_weight(name, (tensor,), "fp32").blocks()
        rows = np.concatenate([block.encode()[0].reshape(-1) for block in blocks])
        tensors[name] = rows.reshape(tensor.shape)
    for layer, matrix in source.packed.items():
        tensors[f"{layer}.weight"] = dequantize(matrix, matrix.read())
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
