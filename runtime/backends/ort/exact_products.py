"""Keep 8-bit products exact on x86 CPUs without VNNI.

ONNX Runtime multiplies uint8 activations by int8 weights. Without VNNI the instruction for that
(vpmaddubsw) adds two products in 16 bits and saturates: whole sums of a layer are then wrong, by
over a tenth on a Zen 3 or a Haswell, without a word. Two session options avoid it:

- `session.x64quantprecision` turns int8 weights into uint8 ones, whose products don't saturate. It
  does nothing where VNNI is.
- `session.disable_quant_qdq` runs QuantizeLinear and DequantizeLinear as they stand and multiplies
  floats. It is for graphs that hold int8 weights in blocks as well, which the first option breaks:
  it gives them zero points of a wrong rank (ONNX Runtime 1.23 to 1.32).
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

from ...files.protobuf import as_bytes, read_fields
from ...files.regular_file import read_regular

CPU_INFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}
_X86 = {"x86_64", "amd64", "i386", "i686"}
_PRECISE, _KEEP_QDQ = "session.x64quantprecision", "session.disable_quant_qdq"
_INT8 = 3  # TensorProto.data_type


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether this CPU is an x86 that lacks VNNI, or doesn't tell."""
    if platform.machine().lower() not in _X86:
        return False
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _VNNI & set(flags.split())


def make_entries(graph: Path | bytes, *, keep_qdq: bool) -> dict[str, str]:
    """The session's configuration with which a graph's products are exact on this CPU.

    Args:
        graph: the ONNX file, or its bytes; weights that lie outside are not needed.
        keep_qdq: QuantizeLinear and DequantizeLinear must run as they stand in any case.
    """
    if keep_qdq:
        return {_KEEP_QDQ: "1"}
    has_rounding, has_blocks = _look_for_int8(graph) if saturates() else (False, False)
    if not has_rounding:
        return {}
    return {_KEEP_QDQ: "1"} if has_blocks else {_PRECISE: "1"}


def _look_for_int8(model: Path | bytes) -> tuple[bool, bool]:
    """Whether a graph rounds activations, and whether it has int8 weights in blocks.

    A missing or damaged file has neither; ONNX Runtime then says what is wrong with it.
    """
    operators: list[tuple[str, str, bool]] = []  # type, first input, whether it has blocks
    int8_names: set[str] = set()
    try:
        data = read_regular(model) if isinstance(model, Path) else model
        for number, graph in read_fields(memoryview(data)):
            for kind, value in read_fields(as_bytes(graph)) if number == 7 else ():
                if kind == 1:
                    operators.append(_read_node(as_bytes(value)))
                elif kind == 5 and (name := _read_int8_name(as_bytes(value))) is not None:
                    int8_names.add(name)
    except (OSError, ValueError, IndexError):
        return False, False
    has_rounding = any(kind == "QuantizeLinear" for kind, _, _ in operators)
    has_blocks = any(
        kind == "DequantizeLinear" and in_blocks and name in int8_names
        for kind, name, in_blocks in operators
    )
    return has_rounding, has_blocks


def _read_node(node: memoryview) -> tuple[str, str, bool]:
    """NodeProto: op_type (4), the first input (1), whether an attribute (5) is a block size."""
    kind, inputs, in_blocks = "", [], False
    for number, value in read_fields(node):
        if number == 1:
            inputs.append(str(as_bytes(value), "utf-8"))
        elif number == 4:
            kind = str(as_bytes(value), "utf-8")
        elif number == 5:
            attribute = dict(read_fields(as_bytes(value)))  # name (1), i (3)
            is_size = bytes(as_bytes(attribute.get(1, b""))) == b"block_size"
            in_blocks = in_blocks or (is_size and attribute.get(3, 0) != 0)
    return kind, inputs[0] if inputs else "", in_blocks


def _read_int8_name(tensor: memoryview) -> str | None:
    """TensorProto: the name (8) where data_type (2) is int8."""
    fields = dict(read_fields(tensor))
    return str(as_bytes(fields.get(8, b"")), "utf-8") if fields.get(2) == _INT8 else None
