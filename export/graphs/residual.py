"""Add the residual at a block's end and apply the next one's norm, in one node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...quant.rounding.weight_only import CONTRIB
from .graph_builder import GraphBuilder


def add_and_norm(
    graph: GraphBuilder,
    op_type: str,
    x: ir.Value,
    branch: ir.Value,
    parameters: Sequence[ir.Value],
    epsilon: float,
    node: str,
    *,
    last: bool = False,
) -> tuple[ir.Value, ir.Value]:
    """Add a Skip*LayerNormalization node.

    Args:
        graph: where the node goes.
        op_type: which of ONNX Runtime's two.
        x: float32[tokens, channels], the residual stream.
        branch: float32[tokens, channels], what is added to it.
        parameters: the norm's weight, and its bias if it has one.
        epsilon: the norm's.
        node: name of the node.
        last: nothing follows that needs the sum; it is not asked for then.

    Returns:
        The normed sum and the sum, each float32[tokens, channels]; the former twice if `last`.
    """
    outputs = graph.ops(
        op_type,
        [x, branch, *parameters],
        node,
        {"epsilon": epsilon},
        CONTRIB,
        num_outputs=1 if last else 4,
        unused=(1, 2),
    )
    return outputs[0], outputs[-1]
