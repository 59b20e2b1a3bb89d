"""Records of steps -> the figures of each engine: medians, ratios to torch and to the ceilings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmedge.export.checkpoint.config import ModelSpec

from .precisions import PRECISIONS
from .work import count_cache_bytes, count_prefill_flops, count_vision_flops

PATCH_PIXELS = 14


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What was measured in the same run: the best of all methods."""

    bytes_per_s: float | None
    flops_per_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One engine's figures; None: not measured.

    Attributes:
        vision_ms: by the picture's side.
        vision_share, prefill_share: of the matrix ceiling, from 0 to 1.
        decode_share: of the bandwidth ceiling.
    """

    name: str
    vision_ms: Mapping[int, float]
    prefill_ms: float | None
    decode_ms: float | None
    vision_share: Mapping[int, float]
    prefill_share: float | None
    decode_share: float | None


def read_ceilings(figures: Mapping[str, Any] | None) -> Ceilings:
    """From the record of that step; None: it has none."""
    if figures is None:
        return Ceilings(None, {})
    return Ceilings(max(figures["bytes_per_s"].values(), default=None), figures["flops_per_s"])


def make_row(
    name: str,
    figures: Mapping[str, Any],
    spec: ModelSpec,
    prompt_tokens: int,
    ceilings: Ceilings,
    *,
    math: tuple[str, str] = ("fp16", "fp16"),
    weight_bytes: int | None = None,
) -> Row:
    """Medians and shares.

    Args:
        name: as tables have it.
        figures: of `timing.measure_side` or `torch_side.measure`.
        spec: of the model that was timed.
        prompt_tokens: of the prefill, and in the cache of the decoding.
        ceilings: to compare with.
        math: what ViT and decoder multiply in.
        weight_bytes: that a token reads; None: not known, no share.
    """
    vision = {int(k): statistics.median(v) for k, v in figures.get("vision_ms", {}).items()}
    prefill, decode = (
        statistics.median(figures[key]) if figures.get(key) else None
        for key in ("prefill_ms", "decode_ms")
    )
    vision_rate, decoder_rate = (ceilings.flops_per_s.get(each) for each in math)
    token_bytes = weight_bytes and weight_bytes + count_cache_bytes(spec, prompt_tokens)
    patches = {side: (side // PATCH_PIXELS) ** 2 for side in vision}
    shares = {
        side: _share(count_vision_flops(spec, patches[side]), ms, vision_rate)
        for side, ms in vision.items()
    }
    return Row(
        name,
        vision,
        prefill,
        decode,
        {side: share for side, share in shares.items() if share is not None},
        _share(count_prefill_flops(spec, prompt_tokens), prefill, decoder_rate),
        _share(token_bytes, decode, ceilings.bytes_per_s),
    )


def make_rows(
    records: Mapping[str, Mapping[str, Any]],
    spec: ModelSpec,
    prompt_tokens: int,
) -> list[Row]:
    """All engines that were timed, ours first.

    Args:
        records: step -> its figures, of the steps that are ok.
        spec: of the model.
        prompt_tokens: of the prefill.
    """
    ceilings = read_ceilings(records.get("ceilings"))
    rows = []
    for name, precision in PRECISIONS.items():
        if (figures := records.get(f"model.{name}.times")) is None:
            continue
        rows.append(
            make_row(
                f"vlmedge {name}",
                figures,
                spec,
                prompt_tokens,
                ceilings,
                math=(precision.vision_math, precision.decoder_math),
                weight_bytes=figures["decoder_weight_bytes"],
            )
        )
    if (figures := records.get("onnxruntime")) is not None:
        rows.append(make_row("ONNX Runtime CUDA", figures, spec, prompt_tokens, ceilings))
    if (figures := records.get("torch")) is not None:
        halves = count_matrix_bytes(spec)
        if "vision_ms" in figures:
            rows.append(
                make_row(
                    "transformers fp16",
                    figures,
                    spec,
                    prompt_tokens,
                    ceilings,
                    weight_bytes=halves,
                )
            )
        alone = {"decode_ms": [figures["matrices_decode_ms"]]}
        rows.append(
            make_row("torch, matrices alone", alone, spec, 0, ceilings, weight_bytes=halves)
        )
    return rows


def count_matrix_bytes(spec: ModelSpec) -> int:
    """Of the decoder's matrices in halves, the last one included."""
    decoder = spec.decoder
    layers = count_prefill_flops(spec, 1) // 2 - decoder.num_heads * decoder.head_dim * (
        decoder.num_layers
    )
    return 2 * layers


def _share(amount: float | None, ms: float | None, ceiling: float | None) -> float | None:
    if not amount or not ms or not ceiling:
        return None
    return amount / (ms / 1000) / ceiling
