"""Say which graphs a model family becomes for an execution backend: a table, no branches elsewhere.

A second family (another way of cutting pictures) or a second flavor of the same graphs (another
backend's operators) is a row here, and a builder beside vision.py and decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ...runtime.bundle.manifest import PixelBudget
from ..checkpoint.open import Checkpoint
from .data_file import DataFile
from .decoder import build_decoder
from .options import ExportOptions
from .vision import build_vision


@dataclass(frozen=True, slots=True)
class Graphs:
    """What a builder makes: nothing is written yet."""

    models: dict[str, ir.Model]  # by the manifest's name of the graph
    data_files: tuple[DataFile, ...]
    precision: dict[str, str]  # checkpoint tensor -> how it is stored


def build_qwen2_vl_onnxruntime(
    checkpoint: Checkpoint, options: ExportOptions, pixels: PixelBudget
) -> Graphs:
    """ONNX Runtime: standard operators, and its own where they are faster or smaller."""
    vision_data, decoder_data = DataFile("vision.onnx.data"), DataFile("decoder.onnx.data")
    vision, vision_precision = build_vision(
        checkpoint, vision_data, options.vision, pixels, num_frames=1
    )
    video, _ = build_vision(checkpoint, vision_data, options.vision, pixels, num_frames=2)
    decoder, decoder_precision = build_decoder(
        checkpoint, decoder_data, options.decoder, options.lm_head
    )
    return Graphs(
        {"vision": vision, "vision_video": video, "decoder": decoder},
        (vision_data, decoder_data),
        vision_precision | decoder_precision,
    )


Builder = Callable[[Checkpoint, ExportOptions, PixelBudget], Graphs]
BUILDERS: dict[tuple[str, str], Builder] = {
    ("qwen2_vl", "onnxruntime"): build_qwen2_vl_onnxruntime,
}
