"""Estimates of `vlmedge plan` against published times of other runtimes on Jetson boards.

    python scripts/check_plan.py            the table of docs/planning.md
    python scripts/check_plan.py --fit      the three factors that export/planning/roofline.py holds

The published models are Qwen3-VL-2B (Cosmos-Reason2-2B has its shapes) and Qwen2.5-VL-3B, which
vlmedge does not run: their shapes are data here, and go through the same functions as ours do.
Every row is also estimated with factors fitted without its board.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.memory import OVERHEAD_BYTES, PROCESS_BYTES, WORKSPACE_BYTES
from vlmedge.export.planning.model_shapes import Attention, Layer, Matrix, ModelShapes
from vlmedge.export.planning.precision import ModelPrecision
from vlmedge.export.planning.roofline import FITTED, Factors, estimate_seconds
from vlmedge.export.planning.weight_bytes import matrix_bytes, tensorrt_rules
from vlmedge.export.planning.work import Call, Costing, Work, list_decoder, list_vision

EDGE_LLM = "Edge-LLM 0.10.0"
BENCH = "Edge-LLM 0.10.0 llm_bench"
ISSUE_60 = "Edge-LLM issue 60"
CHOI = "hokwangchoi, Cosmos-Reason2-2B"
# Boards whose factors are left out together: one chip in two power modes
BOARDS = {
    "orin-nano-8gb": "Orin Nano",
    "orin-nano-8gb-15w": "Orin Nano",
    "orin-nx-16gb": "Orin NX",
    "agx-orin-64gb": "AGX Orin",
    "thor": "Thor",
}


def make_qwen3_vl_2b() -> ModelShapes:
    """From the hub's config: the decoder is Qwen3-1.7B's, the ViT has 24 blocks and 4 mergers."""
    dim, mlp, hidden, decoder_mlp, kv_heads = 1024, 4096, 2048, 6144, 8
    vision: list[Layer] = []
    for i in range(24):
        block = f"visual.blocks.{i}"
        vision += [
            Matrix(f"{block}.attn.qkv", "vision", "patches", 3 * dim, dim),
            Attention(f"{block}.attn", "vision", "patches", 16, 16, 64),
            Matrix(f"{block}.attn.proj", "vision", "patches", dim, dim),
            Matrix(f"{block}.mlp.fc1", "vision", "patches", mlp, dim),
            Matrix(f"{block}.mlp.fc2", "vision", "patches", dim, mlp),
        ]
    for i in range(4):  # behind blocks 5, 11, 17 and the last
        vision += [
            Matrix(f"visual.merger.{i}.0", "vision", "visual tokens", 4096, 4096),
            Matrix(f"visual.merger.{i}.2", "vision", "visual tokens", hidden, 4096),
        ]
    decoder = list_decoder_layers(28, hidden, 16, kv_heads, decoder_mlp, 151936)
    return ModelShapes(
        *(tuple(vision), tuple(decoder), 3 * 16 * 16, 2, 4, dim, mlp, 16),
        *(hidden, decoder_mlp, 16, 28, kv_heads, 128, 151936),
    )


def make_qwen2_5_vl_3b() -> ModelShapes:
    """From the hub's config; only its decoder was published times of."""
    decoder = list_decoder_layers(36, 2048, 16, 2, 11008, 151936)
    return ModelShapes(
        *((), tuple(decoder), 588, 2, 4, 1280, 3420, 16),
        *(2048, 11008, 16, 36, 2, 128, 151936),
    )


def list_decoder_layers(
    count: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocab: int
) -> Iterator[Layer]:
    """A Qwen decoder with heads of 128."""
    for i in range(count):
        name = f"model.layers.{i}"
        qkv = (heads + 2 * kv_heads) * 128
        yield Matrix(f"{name}.self_attn.qkv", "decoder", "new tokens", qkv, hidden)
        yield Attention(f"{name}.self_attn", "decoder", "new tokens", heads, kv_heads, 128)
        yield Matrix(f"{name}.self_attn.o_proj", "decoder", "new tokens", hidden, heads * 128)
        yield Matrix(f"{name}.mlp.gate_up", "decoder", "new tokens", 2 * mlp, hidden)
        yield Matrix(f"{name}.mlp.down_proj", "decoder", "new tokens", hidden, mlp)
    yield Matrix("lm_head", "lm_head", "answers", vocab, hidden)


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure; `published` in milliseconds, of decoding those of a token."""

    source: str
    device: str
    model: str
    weights: str
    phase: str
    published: float
    work: tuple[Work, ...]


def make_costing(shapes: ModelShapes, words: str) -> Costing:
    """Weights of the decoder in one precision; ViT, lm_head and activations in float16."""
    names = [m.name for m in shapes.matrices if m.part == "decoder"]
    return Costing(
        shapes, ModelPrecision(layers=dict.fromkeys(names, words)), tensorrt_rules("float16")
    )


def make_rows() -> list[Row]:
    """Every published figure of these models that says what was run."""
    qwen3, qwen25 = make_qwen3_vl_2b(), make_qwen2_5_vl_3b()
    int4 = make_costing(qwen3, "int4 block 128")
    nvfp4 = make_costing(qwen3, "int4 block 32")  # as many bits as NVFP4's blocks of 16
    rows = []

    def add(source, device, weights, phase, published, work, model="Qwen3-VL-2B"):
        rows.append(Row(source, device, model, weights, phase, published, tuple(work)))

    def vit(patches):
        return list_vision(int4, patches, 1, 2)

    def decode(costing, attended):
        return list_decoder(costing, Call(1, 1, attended))

    def prefill(costing, tokens):
        # Of a causal mask half of the scores are computed: those of an average row
        return list_decoder(costing, Call(1, tokens, tokens // 2))

    edge_llm = (
        ("orin-nano-8gb-15w", 141.3, 167.2, 36.1, 1017, 32.3),
        ("orin-nx-16gb", 77.1, 93.5, 58.5, 760, 52.6),
        ("agx-orin-64gb", 36.2, 45.7, 98.9, 298, 88.7),
    )
    for device, vision, first, rate, bench, bench_rate in edge_llm:
        add(EDGE_LLM, device, "INT4", "ViT, 265 tokens", vision, vit(1060))
        add(EDGE_LLM, device, "INT4", "prefill 292", first, prefill(int4, 292))
        add(EDGE_LLM, device, "INT4", "decode", 1e3 / rate, decode(int4, 356))
        add(BENCH, device, "INT4", "prefill 2048", bench, prefill(int4, 2048))
        add(BENCH, device, "INT4", "decode at 2048", 1e3 / bench_rate, decode(int4, 2112))
    add(EDGE_LLM, "thor", "FP16", "ViT, 265 tokens", 11.7, vit(1060))
    add(EDGE_LLM, "thor", "INT4", "prefill 292", 29.3, prefill(int4, 292))
    add(EDGE_LLM, "thor", "INT4", "decode", 1e3 / 151.1, decode(int4, 356))
    add(EDGE_LLM, "thor", "NVFP4", "prefill 292", 12.7, as_fp4(prefill(nvfp4, 292)))
    add(EDGE_LLM, "thor", "NVFP4", "decode", 1e3 / 151.9, decode(nvfp4, 356))
    add(BENCH, "thor", "NVFP4", "prefill 2048", 28, as_fp4(prefill(nvfp4, 2048)))
    add(BENCH, "thor", "NVFP4", "decode at 2048", 1e3 / 136, decode(nvfp4, 2112))
    for name, words, rate in (
        ("W16A16", "float16", 27.2),
        ("W8A16", "int8 block 128", 45.2),
        ("W4A16", "int4 block 128", 71.8),
    ):
        work = decode(make_costing(qwen25, words), 356)
        add(ISSUE_60, "agx-orin-64gb", name, "decode", 1e3 / rate, work, "Qwen2.5-VL-3B")
    add(CHOI, "orin-nano-8gb", "INT4", "ViT, 494 tokens", 208.0, vit(1976))
    add(CHOI, "orin-nano-8gb", "INT4", "prefill 512", 210.8, prefill(int4, 512))
    add(CHOI, "orin-nano-8gb", "INT4", "decode", 16.73, decode(int4, 576))
    return rows


def as_fp4(work: Sequence[Work]) -> list[Work]:
    """Products of the decoder's matrices at FP4's rate, which is twice FP8's."""
    return [
        dataclasses.replace(piece, flops=piece.flops // 2, rate="fp8")
        if piece.weight_bytes and piece.name != "lm_head"
        else piece
        for piece in work
    ]


def estimate_ms(row: Row, factors: Factors) -> float:
    """By the planner's own function."""
    return 1e3 * estimate_seconds(row.work, DEVICES[row.device], factors)


def fit(rows: Sequence[Row]) -> Factors:
    """The factors of least absolute error of logarithms, softened: no outlier decides alone."""
    from scipy.optimize import least_squares

    def residuals(logs):
        factors = Factors(*(math.exp(value) for value in logs))
        return [math.log(estimate_ms(row, factors) / row.published) for row in rows]

    start = [math.log(value) for value in (0.75, 0.5, 5.0)]
    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x
    return Factors(*(math.exp(value) for value in found))


def fit_without(rows: Sequence[Row]) -> dict[str, Factors]:
    """Board -> factors fitted to the others' rows."""
    return {
        board: fit([row for row in rows if BOARDS[row.device] != board])
        for board in dict.fromkeys(BOARDS.values())
    }


def print_table(rows: Sequence[Row]) -> None:
    """Markdown: every row, its error, and that without its board."""
    others = fit_without(rows)
    print("| source | device | model | weights | what | published | estimate | error | without |")
    print("|---|---|---|---|---|---|---|---|---|")
    errors, blind = [], []
    for row in rows:
        own = estimate_ms(row, FITTED) / row.published - 1
        out = estimate_ms(row, others[BOARDS[row.device]]) / row.published - 1
        errors.append(abs(own))
        blind.append(abs(out))
        print(
            f"| {row.source} | {row.device} | {row.model} | {row.weights} | {row.phase} "
            f"| {row.published:.1f} ms | {row.published * (1 + own):.1f} ms "
            f"| {own:+.0%} | {out:+.0%} |"
        )
    for name, values in (("fitted", errors), ("without the row's board", blind)):
        within = sum(value <= 0.3 for value in values)
        print(
            f"\n{name}: {within} of {len(values)} rows within 30 %, median error "
            f"{statistics.median(values):.0%}, largest {max(values):.0%}"
        )


def print_memory() -> None:
    """Peaks of unified memory that were published, beside the sum of the parts."""
    shapes = make_qwen3_vl_2b()
    costing = make_costing(shapes, "int4 block 128")
    weights = sum(matrix_bytes(m, costing.precision, costing.rules) for m in shapes.matrices)
    table = 2 * shapes.table_rows * shapes.hidden_size
    fixed = weights + table + OVERHEAD_BYTES + PROCESS_BYTES + WORKSPACE_BYTES
    print("\n| source | device | cache | published | estimate | error |")
    print("|---|---|---|---|---|---|")
    for source, device, capacity, published in (
        (EDGE_LLM, "orin-nano-8gb", 4096, 4486),
        (EDGE_LLM, "orin-nx-16gb", 4096, 4533),
        (EDGE_LLM, "agx-orin-64gb", 4096, 4554),
        (CHOI, "orin-nano-8gb", 1024, 4343),
    ):
        estimate = (fixed + shapes.cache_bytes(capacity, 1, 2)) / 2**20
        print(
            f"| {source} | {device} | {capacity} | {published} MiB | {estimate:.0f} MiB "
            f"| {estimate / published - 1:+.0%} |"
        )


def main() -> int:
    """Print the table, or the factors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the factors anew and print them")
    args = parser.parse_args()
    rows = make_rows()
    if args.fit:
        print(fit(rows))
        return 0
    print_table(rows)
    print_memory()
    return 0


if __name__ == "__main__":
    sys.exit(main())
