"""Check that bundle, TensorRT and GPU go together, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...runtime.backends.trt.engine_set import Builder, Gpu
from ...runtime.bundle.manifest import CoverageEntry, Manifest, TargetRecord
from ...runtime.errors import BackendError
from ..lowering.targets import TARGETS

RTX_PREFIX = "RTX "  # of a target's oldest TensorRT, where that is TensorRT-RTX
OLDEST: dict[Builder, str] = {"tensorrt": "10.3", "tensorrt_rtx": "1.5"}
# tensorrt_rtx 1.5 has the parser of TensorRT 11.0: it reads what was written for any older one.
NUM_NAMED = 3  # layers that an error names

# A precision by the first word of its name in the manifest -> the least compute capability with
# arithmetic for it. An Orin has 8.7, a Thor 11.0.
LEAST_CAPABILITY: dict[str, tuple[int, int]] = {
    "bfloat16": (8, 0),
    "int4": (8, 0),
    "float8_e4m3fn": (8, 9),
    "float4_e2m1": (10, 0),
}
INSTEAD = {
    "bfloat16": "export it with --dtype fp16",
    "int4": "quantize it with INT8 instead",
    "float8_e4m3fn": "quantize it with --recipe orin instead (INT8 ViT, INT4 decoder)",
    "float4_e2m1": "quantize it with --recipe thor or orin instead",
}


def check_precisions(manifest: Manifest, target: TargetRecord, gpu: Gpu, graphs: set[str]) -> None:
    """Refuse layers that the GPU can't compute.

    Args:
        manifest: of the bundle.
        target: what its graphs were written for.
        gpu: what is built for.
        graphs: those that are built.

    Raises:
        BackendError: how many layers of which precision, and what to do.
    """
    major, _, minor = gpu.sm.partition(".")
    capability = (int(major), int(minor))
    entries = [entry for entry in manifest.coverage if entry.graph in graphs]
    for precision, least in LEAST_CAPABILITY.items():
        if capability >= least:
            continue
        if layers := [each.name for each in entries if each.precision.split()[0] == precision]:
            raise BackendError(
                f"{_count(entries, layers, precision)}, {_describe(gpu)} has no arithmetic for it "
                f"(that begins at {least[0]}.{least[1]}): {INSTEAD[precision]}"
            )
        if target.dtype == precision:
            raise BackendError(
                f"the bundle computes in {precision}, {_describe(gpu)} has no arithmetic for it: "
                f"{INSTEAD[precision]}"
            )


def check_dtype(target: TargetRecord) -> None:
    """Refuse graphs that only exist to be run by ONNX Runtime.

    Raises:
        BackendError: TensorRT's Attention, which they have, computes in 16 bits.
    """
    if target.dtype == "float32" and target.cache == "in_place":
        raise BackendError(
            f"the bundle computes in float32, which the Attention of {target.name} has no kernel "
            "for: it is for ONNX Runtime's CPU; export it with --dtype bf16 or fp16"
        )


def check_versions(target: TargetRecord, builder: Builder, version: str) -> None:
    """Refuse graphs that this TensorRT's parser does not know.

    Raises:
        BackendError: says what is needed, and the target to export for.
    """
    if read_version(version) < read_version(OLDEST[builder]):
        raise BackendError(f"{builder} {version} is too old: {OLDEST[builder]} is the oldest")
    if builder == "tensorrt_rtx":
        fits = not target.tensorrt.startswith(RTX_PREFIX) or (
            read_version(version) >= read_version(target.tensorrt)
        )
    else:
        fits = not target.tensorrt.startswith(RTX_PREFIX) and (
            read_version(version) >= read_version(target.tensorrt)
        )
    if not fits:
        suited = find_suited_target(builder, version)
        raise BackendError(
            f"the bundle's graphs are for {target.name} (TensorRT {target.tensorrt} or newer), "
            f"this is {builder} {version}: export it with --target {suited}, as in "
            f"vlmedge export BUNDLE OUT --target {suited}"
        )


def find_suited_target(builder: Builder, version: str) -> str:
    """The newest target whose graphs this TensorRT reads."""
    if builder == "tensorrt_rtx":
        return "tensorrt-rtx"
    readable = [
        (read_version(target.tensorrt), name)
        for name, target in TARGETS.items()
        if not target.tensorrt.startswith(RTX_PREFIX)
        and read_version(target.tensorrt) <= read_version(version)
    ]
    return max(readable)[1]


def read_version(text: str) -> tuple[int, int]:
    """Major and minor: "10.3.0.30" -> (10, 3), "RTX 1.5" -> (1, 5).

    Raises:
        ValueError: there are no two numbers.
    """
    found = re.match(r"(\d+)\.(\d+)", text.removeprefix(RTX_PREFIX))
    if found is None:
        raise ValueError(f"{text!r} is no version: needed major and minor, as in 10.3")
    return int(found[1]), int(found[2])


def _count(entries: Sequence[CoverageEntry], layers: Sequence[str], precision: str) -> str:
    more = f" and {len(layers) - NUM_NAMED} more" if len(layers) > NUM_NAMED else ""
    are = "is" if len(layers) == 1 else "are"
    names = ", ".join(layers[:NUM_NAMED])
    return f"{len(layers)} of {len(entries)} layers {are} {precision} ({names}{more})"


def _describe(gpu: Gpu) -> str:
    capability = f"compute capability {gpu.sm}"
    return f"{gpu.name} ({capability})" if gpu.name else capability
