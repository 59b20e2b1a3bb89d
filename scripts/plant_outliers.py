"""A checkpoint with activation outliers in chosen layers, the function of the model unchanged.

    python scripts/plant_outliers.py samples/reader OUT --layer visual.blocks.1.mlp.fc1

A few channels that enter the layer are multiplied by a power of two where they are made (a norm, or
rows of the layer before) and the layer's columns are divided by it. Only exponents change: the
float model computes the same bits. With one scale for the whole activation, INT8 has next to no
levels left for the other channels, unless the outliers are migrated back into the weights: quantize
with smooth = "off". It is the case that `vlmedge quantize --auto` must solve: exactly the planted
layers have to be given back. Layers behind a GELU can't be planted, nothing scales through it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vlmedge.export.checkpoint.config import ModelSpec
from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.weights.tensor_source import TensorSource

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class Edit:
    """Some rows (axis 0) or columns (axis 1) of a tensor multiplied."""

    tensor: str
    axis: int
    indices: NDArray[np.int64]
    factor: float


def plant_outliers(
    checkpoint: Path,
    out: Path,
    layers: list[str],
    *,
    factor: float = 1024.0,
    num_channels: int = 4,
    seed: int = 0,
) -> Path:
    """Write the changed checkpoint.

    Args:
        checkpoint: folder.
        out: folder to write; must not exist.
        layers: names as bundles have them.
        factor: a power of two.
        num_channels: of each layer's input.
        seed: of which.

    Returns:
        `out`.

    Raises:
        ValueError: a layer that can't be planted, or values that leave the stored type's range.
    """
    if np.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor is {factor}, needed a power of two")
    source = open_checkpoint(checkpoint)
    shutil.copytree(source.folder, out)
    random = np.random.default_rng(seed)
    for layer in layers:
        for edit in list_edits(layer, source.spec, factor, num_channels, random):
            if edit.tensor in source.tensors:  # norms of the decoder have no bias
                tensor = source.tensors[edit.tensor]
                apply_edit(out / tensor.path.relative_to(source.folder), tensor, edit)
    return out


def list_edits(
    layer: str, spec: ModelSpec, factor: float, num_channels: int, random: np.random.Generator
) -> Iterator[Edit]:
    """What has to change to plant one layer.

    Raises:
        ValueError: names the kinds of layers that can be planted.
    """
    vision, decoder = spec.vision, spec.decoder

    def pick(size: int) -> NDArray[np.int64]:
        return np.sort(random.choice(size, num_channels, replace=False))

    def norm(name: str, columns: list[str], size: int, copies: int = 1) -> Iterator[Edit]:
        channels = pick(size)
        for part in ("weight", "bias"):
            yield Edit(f"{name}.{part}", 0, channels, factor)
        spread = np.concatenate([channels + i * size for i in range(copies)])
        for tensor in columns:
            yield Edit(f"{tensor}.weight", 1, spread, 1 / factor)

    def rows(name: str, first: int, channels: NDArray[np.int64]) -> Iterator[Edit]:
        for part in ("weight", "bias"):
            yield Edit(f"{name}.{part}", 0, first + channels, factor)

    if match := re.fullmatch(r"(visual\.blocks\.\d+)\.(.+)", layer):
        block, kind = match.groups()
        if kind in ("attn.qkv", "mlp.fc1"):
            name = "norm1" if kind == "attn.qkv" else "norm2"
            yield from norm(f"{block}.{name}", [layer], vision.embed_dim)
            return
        if kind == "attn.proj":
            channels = pick(vision.embed_dim)
            yield from rows(f"{block}.attn.qkv", 2 * vision.embed_dim, channels)
            yield Edit(f"{layer}.weight", 1, channels, 1 / factor)
            return
    if layer == "visual.merger.mlp.0":
        copies = vision.spatial_merge_size**2
        yield from norm("visual.merger.ln_q", [layer], vision.embed_dim, copies)
        return
    if match := re.fullmatch(r"(model\.layers\.\d+)\.(.+)", layer):
        block, kind = match.groups()
        if kind in ("self_attn.q_proj+k_proj+v_proj", "mlp.gate_proj+up_proj"):
            prefix, _, joined = kind.partition(".")
            name = "input_layernorm" if prefix == "self_attn" else "post_attention_layernorm"
            columns = [f"{block}.{prefix}.{part}" for part in joined.split("+")]
            yield from norm(f"{block}.{name}", columns, decoder.hidden_size)
            return
        if kind == "self_attn.o_proj":
            size = decoder.head_dim
            channels = pick(decoder.num_kv_heads * size)
            yield from rows(f"{block}.self_attn.v_proj", 0, channels)
            shared = decoder.num_heads // decoder.num_kv_heads  # query heads to a head of values
            heads = channels // size * shared + np.arange(shared)[:, None]
            columns = (heads * size + channels % size).ravel()
            yield Edit(f"{layer}.weight", 1, columns, 1 / factor)
            return
        if kind == "mlp.down_proj":
            channels = pick(spec.decoder_mlp_size)
            yield from rows(f"{block}.mlp.up_proj", 0, channels)
            yield Edit(f"{layer}.weight", 1, channels, 1 / factor)
            return
    raise ValueError(
        f"{layer} can't be planted, needed visual.blocks.N.attn.qkv, .attn.proj or .mlp.fc1, "
        "visual.merger.mlp.0, or of model.layers.N self_attn.q_proj+k_proj+v_proj, "
        "self_attn.o_proj, mlp.gate_proj+up_proj or mlp.down_proj"
    )


def apply_edit(path: Path, tensor: TensorSource, edit: Edit) -> None:
    """Change one tensor in its file.

    Raises:
        ValueError: a value that the stored type can't hold exactly.
    """
    dtype = np.dtype(DTYPES[tensor.dtype])
    values = np.memmap(path, dtype, "r+", tensor.offset, tensor.shape)
    where = edit.indices if edit.axis == 0 else (slice(None), edit.indices)
    old = np.asarray(values[where], np.float32)
    new = (old * np.float32(edit.factor)).astype(dtype)
    if not np.array_equal(new.astype(np.float32) / np.float32(edit.factor), old):
        raise ValueError(f"{tensor.name} times {edit.factor} leaves {tensor.dtype}: use less")
    values[where] = new
    values.flush()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layer", action="append", required=True, metavar="NAME")
    parser.add_argument("--factor", type=float, default=1024.0, help="a power of two")
    parser.add_argument("--num-channels", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Plant as the command line says."""
    args = parse_args(argv)
    try:
        plant_outliers(
            args.checkpoint,
            args.out,
            args.layer,
            factor=args.factor,
            num_channels=args.num_channels,
            seed=args.seed,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"plant_outliers: {error}")


if __name__ == "__main__":
    main()
