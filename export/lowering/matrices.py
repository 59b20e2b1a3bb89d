"""Linear layers: float, between Q and DQ, or of blocks of integers.

The matrix keeps the checkpoint's [out, in] layout in every form, and nothing stands between a
DequantizeLinear and its Gemm: that is where TensorRT fuses them.
"""

from __future__ import annotations

import onnx
from numpy.typing import NDArray

from .blocks import BlockPlan, Packing, convert, plan_blocks, read_levels, write_levels
from .context import Lowering, read_attributes
from .emitter import FLOATS
from .initializers import narrow_rows

BLOCK_BITS = {"int4": 4, "int8": 8}


def lower_gemm(lowering: Lowering, node: onnx.NodeProto) -> None:
    """Gemm: the patch embedding stays float32, as its raw levels need more bits than weights."""
    e = lowering.emitter
    x = lowering.value(node.input[0])
    dtype = e.types[x]
    inputs = [x, *(lowering.float_input(name, dtype) for name in node.input[1:])]
    output = node.output[0] if dtype == e.compute else f"{node.name}/{dtype}"
    y = e.op("Gemm", inputs, node.name, output=output, transB=1)
    if dtype != e.compute:
        e.cast(y, e.compute, output=node.output[0])


def lower_cast(lowering: Lowering, node: onnx.NodeProto) -> None:
    """Casts of float16 matrices go away; integers become float32, for levels and angles."""
    name = node.input[0]
    if name in lowering.weights:
        dtype = lowering.emitter.compute
        lowering.values[node.output[0]] = lowering.weights.floats(name, dtype)
        return
    value = lowering.value(name)
    if lowering.emitter.types[value] in FLOATS:
        lowering.values[node.output[0]] = value
    else:
        lowering.values[node.output[0]] = lowering.emitter.cast(value, "float32")


def lower_dequantize(lowering: Lowering, node: onnx.NodeProto) -> None:
    """Of activations and of weights with a scale a row: as it is; of blocks: what is allowed."""
    block_size = read_attributes(node).get("block_size")
    name = node.input[0]
    if name not in lowering.weights or not block_size:
        return lowering.pass_through(node)
    kind = lowering.weights.type(name)
    weight = name.removesuffix(f".{kind}")
    row_size = lowering.weights.shape(name)[1]
    return _lower_blocks(
        lowering,
        node,
        (name, node.input[1]),
        (BLOCK_BITS[kind], "levels", block_size, row_size),
        weight,
        node.output[0],
    )


def lower_matmul_nbits(lowering: Lowering, node: onnx.NodeProto) -> None:
    """ONNX Runtime's product with blocks of integers -> DequantizeLinear and Gemm."""
    e, attributes = lowering.emitter, read_attributes(node)
    weight = node.input[1].removesuffix(".packed")
    if len(node.input) > 3 and node.input[3]:
        raise ValueError(
            f"{weight} has zero points, which TensorRT's blocks of integers have not: export the "
            "packed checkpoint with --requantize"
        )
    prefix = node.name.rpartition("/")[0]
    output = f"{prefix}/weight/DequantizeLinear/output_0"
    _lower_blocks(
        lowering,
        onnx.NodeProto(name=f"{prefix}/weight/DequantizeLinear"),
        (node.input[1], node.input[2]),
        (attributes["bits"], "nbits", attributes["block_size"], attributes["K"]),
        weight,
        output,
    )
    x = lowering.value(node.input[0])
    inputs = [x, output]
    if len(node.input) > 5 and node.input[5]:
        inputs.append(lowering.weights.floats(node.input[5], e.types[x]))
    e.op("Gemm", inputs, f"{prefix}/MatMul", output=node.output[0], transB=1)


def _lower_blocks(
    lowering: Lowering,
    node: onnx.NodeProto,
    stored: tuple[str, str],
    form: tuple[int, Packing, int, int],
    weight: str,
    output: str,
) -> None:
    """A DequantizeLinear of a matrix in blocks.

    Args:
        lowering: the graph.
        node: gives the name.
        stored: names of codes and scales.
        form: bits, packing, block size and row size of the codes.
        weight: the checkpoint's name of the matrix.
        output: name of the float matrix.
    """
    e, weights = lowering.emitter, lowering.weights
    bits, packing, block_size, row_size = form
    codes, scales = stored
    num_rows = weights.shape(codes)[0]
    turns = bool((weights.read(scales) < 0).any())
    allowed = lowering.target.int4_blocks if bits == 4 else lowering.target.int8_blocks
    plan = plan_blocks(bits, block_size, row_size, turns, allowed)

    def recode(rows: NDArray, start: int) -> tuple[NDArray, NDArray]:
        levels = read_levels(rows, bits, packing, row_size)
        old = weights.read_rows(scales, start, start + len(rows)).reshape(len(rows), -1)
        levels, new = convert(levels, old, block_size, plan)
        return write_levels(levels, plan.bits), narrow_rows(new, e.compute, positive=True)

    kind = f"int{plan.bits}"
    blocks = (num_rows,) if plan.block_size is None else (num_rows, row_size // plan.block_size)
    new, new_scales = weights.recode(
        codes,
        (f"{weight}.{kind}", kind, (num_rows, row_size)),
        (f"{weight}.scales.{e.compute}", e.compute, blocks),
        recode,
    )
    blocked = {} if plan.block_size is None else {"block_size": plan.block_size}
    axis = 0 if plan.block_size is None else 1
    e.op(
        "DequantizeLinear",
        [new, new_scales],
        node.name,
        output=output,
        dtype=e.compute,
        axis=axis,
        **blocked,
    )
    note = _describe(plan, bits, block_size)
    if note:
        lowering.notes[weight.removesuffix(".weight")] = (plan.precision, note)


def _describe(plan: BlockPlan, bits: int, block_size: int) -> str | None:
    """Why a matrix is not what its recipe made of it."""
    if plan.block_size is None:
        return f"the target takes no int{bits} block of {block_size}"
    if plan.turns:
        return "some scales were negative, rounded again"
    return f"blocks of {block_size} cut, the same values" if plan.repeat > 1 else None
