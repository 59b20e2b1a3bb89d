"""Output error of one linear layer under every way to round it: python scripts/bench_rounding.py.

K = N = 1280, seeded inputs of four shapes: correlated normal values, the same through a GELU, with
channels of different size and six of them forty times the others, and with rare tokens of a size
of their own besides. Ranges and moments come from 4096 rows, errors from 2048 others, in percent of
the output. Says which method survives what, not what a model loses.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from vlmedge.quant.rounding import int8
from vlmedge.quant.rounding.awq import search_scales
from vlmedge.quant.rounding.block_scales import pack_searched
from vlmedge.quant.rounding.gptq import add_moments, quantize_blocks, quantize_rows
from vlmedge.quant.rounding.histogram import ActivationStats, Histogram
from vlmedge.quant.rounding.ranges import RangeMethod, find_amax
from vlmedge.quant.rounding.smooth import find_input_amax, round_input, search_strength
from vlmedge.quant.rounding.weight_only import pack_rows, unpack_rows

SIZE = 1280
RANK = 160  # of what the inputs have in common
Rows = NDArray[np.float32]


def make_inputs(kind: str, num_rows: int, random: np.random.Generator) -> Rows:
    """float32[num_rows, SIZE] of one shape."""
    fixed = np.random.default_rng(7)  # what calibration and test have in common
    mix = fixed.standard_normal((RANK, SIZE)) / np.sqrt(RANK)
    x = random.standard_normal((num_rows, RANK)) @ mix
    x += 0.5 * random.standard_normal(x.shape)
    x /= x.std()
    if kind == "gelu":
        x = 2 * x / (1 + np.exp(-1.702 * 2 * x))
    if kind in ("outliers", "massive"):
        gains = np.exp(fixed.normal(0, 0.7, SIZE))
        gains[fixed.choice(SIZE, 6, replace=False)] *= 40
        x *= gains
    if kind == "massive":
        x[::401, 5], x[::401, 77] = 500, -300
    return x.astype(np.float32)


def make_weight(random: np.random.Generator) -> Rows:
    """float32[SIZE, SIZE]: rows of different size, some large weights."""
    weight = random.standard_normal((SIZE, SIZE)) * np.exp(random.normal(0, 0.3, (SIZE, 1)))
    weight *= np.where(random.random(weight.shape) < 0.002, 4, 1)
    return (weight / np.sqrt(SIZE)).astype(np.float32)


def measure_static(x: Rows, test: Rows, weight: Rows) -> dict[str, tuple[float, float]]:
    """Range method -> error of static W8A8 to nearest, without and with migration."""
    stats = ActivationStats(SIZE)
    stats.update(x)
    found = search_strength(x, weight, method="mse", channel_amax=stats.channel_amax)
    errors = {}
    methods: tuple[RangeMethod, ...] = ("minmax", "percentile", "entropy", "mse")
    for method in methods:
        pair = []
        for scales in (np.ones(SIZE, np.float32), found.scales):
            amax = find_amax(Histogram.of(x / scales), method)
            pair.append(_error_of_static(test, weight, scales, amax))
        errors[f"{method}, of the values"] = tuple(pair)
    pair = []
    for scales in (np.ones(SIZE, np.float32), found.scales):
        amax = find_input_amax(x / scales, weight * scales, "int8", "mse")
        assert amax is not None
        pair.append(_error_of_static(test, weight, scales, amax))
    errors["mse, of the output"] = tuple(pair)
    return errors


def _error_of_static(test: Rows, weight: Rows, scales: Rows, amax: float) -> float:
    rows = int8.channel_scales(weight * scales)
    rounded = int8.dequantize(int8.quantize(weight * scales, rows), rows)
    return _relative(test @ weight.T, round_input(test / scales, "int8", amax) @ rounded.T)


def measure_weights(x: Rows, test: Rows, weight: Rows, bits: int, block: int) -> dict[str, float]:
    """Method -> error of weights alone, in blocks."""
    stats = ActivationStats(SIZE)
    stats.update(x)
    moments = np.zeros((SIZE, SIZE), np.float32)
    add_moments(moments, x)
    scales = search_scales(x, weight, bits, block).scales
    squares = stats.channel_mean_square
    ones = np.ones(SIZE, np.float32)
    packed = {
        "nearest": (ones, pack_rows(weight, bits, block)),
        "searched block scales": (ones, pack_searched(weight, bits, block, squares)),
        "awq": (scales, pack_searched(weight * scales, bits, block, squares / scales**2)),
        "gptq": (ones, quantize_blocks(weight, moments, bits, block)),
        "awq+gptq": (
            scales,
            quantize_blocks(weight * scales, moments, bits, block, input_scales=scales),
        ),
    }
    return {
        name: _relative(test @ weight.T, (test / s) @ unpack_rows(*codes, bits, SIZE).T)
        for name, (s, codes) in packed.items()
    }


def measure_rows(x: Rows, test: Rows, weight: Rows) -> dict[str, float]:
    """Method -> error of int8 weights alone, a scale per row."""
    moments = np.zeros((SIZE, SIZE), np.float32)
    add_moments(moments, x)
    scales = int8.channel_scales(weight)
    return {
        name: _relative(test @ weight.T, test @ int8.dequantize(codes, scales).T)
        for name, codes in (
            ("nearest", int8.quantize(weight, scales)),
            ("gptq", quantize_rows(weight, moments, scales)),
        )
    }


def _relative(wanted: Rows, got: Rows) -> float:
    return 100 * float(np.linalg.norm(wanted - got) / np.linalg.norm(wanted))


def main() -> None:
    """A table for each shape of input."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    random = np.random.default_rng(0)
    weight = make_weight(random)
    for kind in ("normal", "gelu", "outliers", "massive"):
        x, test = make_inputs(kind, 4096, random), make_inputs(kind, 2048, random)
        print(f"== {kind}")
        for method, (plain, moved) in measure_static(x, test, weight).items():
            print(f"W8A8  {method:<26}{plain:6.2f}  with migration {moved:6.2f}")
        for method, error in measure_rows(x, test, weight).items():
            print(f"int8 weights, rows     {method:<22}{error:6.2f}")
        for method, error in measure_weights(x, test, weight, 4, 64).items():
            print(f"int4 weights, block 64 {method:<22}{error:6.2f}", flush=True)


if __name__ == "__main__":
    main()
