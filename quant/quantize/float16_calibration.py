"""Find the layers whose inputs float16 cannot hold, from calibration's largest inputs.

A quantizer sees what goes into every layer it calibrates, the product of gate_proj and up_proj
among them. A bundle for ONNX Runtime computes in float32 and holds such values; graphs that are
written from it for a target with `--dtype fp16` would not.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..compare.findings import FLOAT16_LARGEST
from .calibration import LayerCalibration

MAX_NAMED = 5


def find_over_float16(calibration: Mapping[str, LayerCalibration]) -> dict[str, float]:
    """Layer -> its largest input, of those over float16's range."""
    largest = {name: layer.stats.histogram.amax for name, layer in calibration.items()}
    return {name: value for name, value in largest.items() if value > FLOAT16_LARGEST}


def describe_over_float16(over: Mapping[str, float]) -> str | None:
    """One line; None where there is nothing to tell."""
    if not over:
        return None
    names = list(over)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (
        f"the calibration data reaches {max(over.values()):.4g} in what goes into "
        f"{', '.join(names[:MAX_NAMED])}{more}, over float16's {FLOAT16_LARGEST:g}: for TensorRT, "
        "export this bundle with --dtype bf16"
    )
