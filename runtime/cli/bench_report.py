"""Lay out the figures of a benchmark as tables."""

from __future__ import annotations

from ..terminal.console import print_table
from .bench import BenchResult, Spread


def print_report(result: BenchResult) -> None:
    """Conditions first, then vision, text, load time and memory; medians, ranges in brackets."""
    threads = "the engine's choice" if result.num_threads is None else str(result.num_threads)
    print_table(
        f"Bench of {result.bundle}",
        ("", ""),
        [
            ("machine", f"{result.machine}, {result.num_cpus} CPUs"),
            ("providers", ", ".join(result.providers)),
            ("threads", threads),
            ("onnxruntime", result.onnxruntime),
            ("runs", f"{result.num_runs}, medians [lowest - highest]"),
        ],
    )
    print_table(
        "Picture",
        (">size", ">seen as", ">tokens", ">read and cut, ms", ">vision, ms"),
        [
            (
                f"{figure.width}x{figure.height}",
                f"{figure.seen_width}x{figure.seen_height}",
                figure.num_tokens,
                _format(figure.preprocess_ms),
                _format(figure.vision_ms),
            )
            for figure in result.vision
        ],
    )
    print_table(
        "Text",
        (">prompt tokens", ">prefill, tokens/s", ">decode, tokens/s"),
        [
            (
                figure.num_prompt_tokens,
                _format(figure.prefill_tokens_per_s),
                _format(figure.decode_tokens_per_s),
            )
            for figure in result.contexts
        ],
    )
    print_table(
        "Fresh process: load, one picture, one answer",
        ("residency", ">picture", ">load, s", ">peak memory, MiB"),
        [
            (
                figure.residency,
                f"{figure.width}x{figure.height}",
                _format(figure.load_s, digits=2),
                _format(figure.peak_bytes, scale=2**-20, digits=0),
            )
            for figure in result.memory
        ],
    )


def _format(spread: Spread, *, scale: float = 1.0, digits: int = 1) -> str:
    median, low, high = (
        f"{value * scale:.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )
    return f"{median} [{low} - {high}]"
