"""A checkpoint with one fault in one tensor, as a broken export or a damaged file would leave it.

    python scripts/plant_faults.py samples/reader OUT --tensor visual.blocks.1.mlp.fc1.weight \
        --fault noise --amount 30

Exported and checked against the original's bundle, exactly that layer has to be named. Unlike
plant_outliers.py the model is another one: that is the point.

    scale      rows times --amount
    noise      rows plus noise of --amount dB SQNR
    bad-row    the first of the rows replaced by noise of its own size
    swap-rows  the first and the last of the rows change places
    shift      rows plus --amount times their root mean square (meant for a bias)

One more is no fault in float32 and bfloat16, where the model stays the same: an MLP whose products
leave the range of float16, up_proj times 2^--amount and down_proj divided by it.

    python scripts/plant_faults.py samples/reader OUT --tensor model.layers.1.mlp \
        --fault overflow --amount 13
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vlmedge.export.checkpoint.open import open_checkpoint

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
Rows = NDArray[np.float32]


def scale(rows: Rows, amount: float, random: np.random.Generator) -> Rows:
    """Rows times the amount."""
    return rows * np.float32(amount)


def add_noise(rows: Rows, amount: float, random: np.random.Generator) -> Rows:
    """Rows with noise that many dB under them."""
    size = np.sqrt(np.mean(np.square(rows))) * 10 ** (-amount / 20)
    return rows + np.float32(size) * random.standard_normal(rows.shape, np.float32)


def spoil_row(rows: Rows, amount: float, random: np.random.Generator) -> Rows:
    """The first row replaced by noise of its own size."""
    changed = rows.copy()
    size = np.sqrt(np.mean(np.square(rows[0])))
    changed[0] = size * random.standard_normal(rows[0].shape, np.float32)
    return changed


def swap_rows(rows: Rows, amount: float, random: np.random.Generator) -> Rows:
    """The first and the last row in each other's place."""
    changed = rows.copy()
    changed[[0, -1]] = rows[[-1, 0]]
    return changed


def shift(rows: Rows, amount: float, random: np.random.Generator) -> Rows:
    """Rows plus a constant."""
    return rows + np.float32(amount * np.sqrt(np.mean(np.square(rows))))


FAULTS: dict[str, Callable[[Rows, float, np.random.Generator], Rows]] = {
    "scale": scale,
    "noise": add_noise,
    "bad-row": spoil_row,
    "swap-rows": swap_rows,
    "shift": shift,
}
OVERFLOW = "overflow"


def plant_fault(
    checkpoint: Path,
    out: Path,
    tensor: str,
    fault: str,
    amount: float = 0.0,
    rows: slice = slice(None),
    seed: int = 0,
) -> Path:
    """Write the changed checkpoint.

    Args:
        checkpoint: folder.
        out: folder to write; must not exist.
        tensor: its name in the checkpoint.
        fault: a key of FAULTS.
        amount: what it says in this module's list.
        rows: of the tensor, all others stay as they are.
        seed: of noise.

    Returns:
        `out`.

    Raises:
        ValueError: there is no such tensor or fault.
    """
    source = open_checkpoint(checkpoint)
    if fault not in FAULTS:
        raise ValueError(f"fault is {fault!r}, needed one of {', '.join(FAULTS)}")
    if tensor not in source.tensors:
        raise ValueError(f"the checkpoint has no tensor {tensor}")
    shutil.copytree(source.folder, out)
    found = source.tensors[tensor]
    path = out / found.path.relative_to(source.folder)
    values = np.memmap(path, np.dtype(DTYPES[found.dtype]), "r+", found.offset, found.shape)
    old = np.asarray(values[rows], np.float32)
    values[rows] = FAULTS[fault](old, amount, np.random.default_rng(seed)).astype(values.dtype)
    values.flush()
    return out


def plant_overflow(checkpoint: Path, out: Path, mlps: Sequence[str], power: int) -> Path:
    """Write a checkpoint that is the same model, with products of MLPs 2^power as large.

    Args:
        checkpoint: folder.
        out: folder to write; must not exist.
        mlps: "model.layers.1.mlp".
        power: of two.

    Returns:
        `out`.

    Raises:
        ValueError: there is no such MLP, or the weights' own type has no such numbers.
    """
    source = open_checkpoint(checkpoint)
    parts = {f"{mlp}.up_proj.weight": power for mlp in mlps}
    parts |= {f"{mlp}.down_proj.weight": -power for mlp in mlps}
    if missing := [name for name in parts if name not in source.tensors]:
        raise ValueError(f"the checkpoint has no tensor {missing[0]}")
    shutil.copytree(source.folder, out)
    for name, exponent in parts.items():
        found = source.tensors[name]
        path = out / found.path.relative_to(source.folder)
        values = np.memmap(path, np.dtype(DTYPES[found.dtype]), "r+", found.offset, found.shape)
        old = np.asarray(values, np.float32)
        new = np.ldexp(old, exponent).astype(values.dtype)
        if not np.array_equal(np.ldexp(new.astype(np.float32), -exponent), old):
            raise ValueError(f"{name} times 2^{exponent} is no {found.dtype} any more")
        values[...] = new
        values.flush()
    return out


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tensor", required=True, metavar="NAME")
    parser.add_argument("--fault", choices=(*FAULTS, OVERFLOW), required=True)
    parser.add_argument("--amount", type=float, default=0.0)
    parser.add_argument("--rows", metavar="FIRST:END", default=":", help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Plant as the command line says."""
    args = parse_args(argv)
    try:
        if args.fault == OVERFLOW:
            plant_overflow(args.checkpoint, args.out, [args.tensor], int(args.amount))
            return
        first, _, end = args.rows.partition(":")
        rows = slice(int(first) if first else None, int(end) if end else None)
        plant_fault(
            args.checkpoint, args.out, args.tensor, args.fault, args.amount, rows, args.seed
        )
    except (ValueError, OSError) as error:
        sys.exit(f"plant_faults: {error}")


if __name__ == "__main__":
    main()
