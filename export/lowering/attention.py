"""Attention and its rotation: fused operators, or MatMul and Softmax where a parser has none.

The decoder's cache, B sequences, H query heads, K heads of keys and values, S new tokens:

    in_place   past [B, K, M, d] - TensorScatter(new rows, write_indices) - present, same memory
               Attention(q, present, present, mask [B, 1, S, M])
    append     scores = [q past^T | q new^T] + bias [B, 1, S, M + S] - Softmax - cut in two
               shares[:M] past values + shares[M:] new values;  present = the new rows alone

The second form reads the cache where it lies and never copies it, so it needs neither a scatter
(TensorRT's makes a copy of the whole) nor a fixed M. The q heads that share a k head are rows of
one product.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from .context import Lowering, read_attributes

MASK = "attention_mask"
WRITE_INDICES = "write_indices"
FAR_BELOW = -30000.0  # within float16; nothing of a share is left: exp(-30000) is 0


def lower_rotary(lowering: Lowering, node: onnx.NodeProto) -> None:
    """Rotary embedding, halves paired; the ViT's in float32, as the reference has it."""
    e, name = lowering.emitter, node.name
    x = lowering.split_heads(node.input[0], read_attributes(node)["num_heads"], name)
    is_vision = name.startswith("/visual")
    dtype = "float32" if is_vision else e.compute
    x = e.cast(x, dtype)
    tables = [e.cast(lowering.value(table), dtype) for table in node.input[1:3]]
    if lowering.target.fused:
        x = e.op("RotaryEmbedding", [x, *tables], name)
    else:
        x = _rotate(lowering, x, tables, name)
    lowering.heads[node.output[0]] = e.cast(x, e.compute)


def _rotate(lowering: Lowering, x: str, tables: list[str], name: str) -> str:
    """(a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head."""
    e = lowering.emitter
    key = f"{tables[0]}/per_head"
    if key not in lowering.values:
        for table in tables:  # [batch, tokens, half] -> [batch, 1, tokens, half], once a graph
            made = e.op("Unsqueeze", [table, e.integers(1)], f"{table}/Unsqueeze")
            lowering.values[f"{table}/per_head"] = made
    cos, sin = (lowering.values[f"{table}/per_head"] for table in tables)
    halves = [f"{name}/half_0", f"{name}/half_1"]
    e.add(onnx.helper.make_node("Split", [x], halves, f"{name}/Split", axis=-1, num_outputs=2))
    for half in halves:
        e.types[half] = e.types[x]
    a, b = halves
    first = e.op("Mul", [a, cos], f"{name}/a_cos")
    first = e.op("Sub", [first, e.op("Mul", [b, sin], f"{name}/b_sin")], f"{name}/Sub")
    second = e.op("Mul", [b, cos], f"{name}/b_cos")
    second = e.op("Add", [second, e.op("Mul", [a, sin], f"{name}/a_sin")], f"{name}/Add")
    return e.op("Concat", [first, second], f"{name}/Concat", axis=-1)


def lower_vision_attention(lowering: Lowering, node: onnx.NodeProto) -> None:
    """MultiHeadAttention without a mask."""
    e, name = lowering.emitter, node.name
    num_heads = read_attributes(node)["num_heads"]
    q, k, v = (
        lowering.split_heads(value, num_heads, f"{name}/{part}")
        for value, part in zip(node.input[:3], "qkv", strict=True)
    )
    if lowering.target.fused:
        x = e.op("Attention", [q, k, v], name)
    else:
        x = e.op("MatMul", [_scale(lowering, q, name), _turn(lowering, k, name)], f"{name}/scores")
        x = e.op("Softmax", [x], f"{name}/Softmax", axis=-1)
        x = e.op("MatMul", [x, v], f"{name}/mix")
    lowering.join_heads(x, name, node.output[0])


def lower_cached_attention(lowering: Lowering, node: onnx.NodeProto) -> None:
    """GroupQueryAttention: its cache becomes explicit, its lengths a mask."""
    name, attributes = node.name, read_attributes(node)
    heads = (attributes["num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"])
    q, k, v = (
        lowering.split_heads(value, count, f"{name}/{part}")
        for value, count, part in zip(node.input[:3], heads, "qkv", strict=True)
    )
    lower = _attend_in_place if lowering.cache == "in_place" else _attend_appending
    x = lower(lowering, node, (q, k, v), heads[1])
    lowering.join_heads(x, name, node.output[0])


def _attend_in_place(
    lowering: Lowering, node: onnx.NodeProto, qkv: tuple[str, str, str], _: int
) -> str:
    e, name = lowering.emitter, node.name
    presents = [
        e.op(
            "TensorScatter",
            [past, new, WRITE_INDICES],
            f"{name}/{part}/TensorScatter",
            output=present,
            axis=-2,
            mode="linear",
        )
        for past, new, present, part in zip(
            node.input[3:5], qkv[1:], node.output[1:3], ("key", "value"), strict=True
        )
    ]
    return e.op("Attention", [qkv[0], *presents, MASK], name)


def _attend_appending(
    lowering: Lowering, node: onnx.NodeProto, qkv: tuple[str, str, str], num_kv_heads: int
) -> str:
    e, name = lowering.emitter, node.name
    q, k, v = qkv
    num_heads = read_attributes(node)["num_heads"]
    past_k, past_v = node.input[3:5]
    for new, present in zip((k, v), node.output[1:3], strict=True):
        e.op("Identity", [new], f"{name}/{present}", output=present)
    grouped = e.integers(0, num_kv_heads, -1, 0)
    per_head = e.integers(0, num_heads, -1, 0)
    q = e.op("Reshape", [_scale(lowering, q, name), grouped], f"{name}/group")
    scores = [
        e.op("MatMul", [q, _turn(lowering, keys, f"{name}/{part}")], f"{name}/{part}/scores")
        for keys, part in ((past_k, "past"), (k, "new"))
    ]
    x = e.op("Concat", scores, f"{name}/Concat", axis=-1)
    x = e.op("Reshape", [x, per_head], f"{name}/ungroup")
    x = e.op("Add", [x, _bias(lowering)], f"{name}/mask")
    x = e.op("Softmax", [x], f"{name}/Softmax", axis=-1)
    x = e.op("Reshape", [x, grouped], f"{name}/regroup")
    zero, capacity, end, axis = _cut(lowering, past_k)
    past = e.op("Slice", [x, zero, capacity, axis], f"{name}/past/Slice")
    new = e.op("Slice", [x, capacity, end, axis], f"{name}/new/Slice")
    mixes = [
        e.op("MatMul", [share, values], f"{name}/{part}/mix")
        for share, values, part in ((past, past_v, "past"), (new, v, "new"))
    ]
    x = e.op("Add", mixes, f"{name}/Add")
    return e.op("Reshape", [x, per_head], f"{name}/heads")


def _scale(lowering: Lowering, q: str, name: str) -> str:
    """Q / sqrt(head_dim), before the product: scores of float16 stay small."""
    e = lowering.emitter
    root = np.array(1 / math.sqrt(lowering.head_dim), np.float32)
    scale = e.constant("attention_scale", root, e.types[q])
    return e.op("Mul", [q, scale], f"{name}/Scale")


def _turn(lowering: Lowering, k: str, name: str) -> str:
    return lowering.emitter.op("Transpose", [k], f"{name}/Transpose", perm=[0, 1, 3, 2])


def _bias(lowering: Lowering) -> str:
    """0 where a token may look, far below where not; once a graph."""
    e = lowering.emitter
    if "bias" not in lowering.values:
        zero = e.constant("mask_open", np.array(0, np.float32), e.compute)
        below = e.constant("mask_shut", np.array(FAR_BELOW, np.float32), e.compute)
        lowering.values["bias"] = e.op(
            "Where", [MASK, zero, below], "/model/mask/Where", dtype=e.compute
        )
    return lowering.values["bias"]


def _cut(lowering: Lowering, past: str) -> tuple[str, str, str, str]:
    """Start, border, end and axis of the two parts of scores; once a graph."""
    e = lowering.emitter
    if "capacity" not in lowering.values:
        lowering.values["capacity"] = e.op(
            "Shape", [past], "/model/capacity/Shape", dtype="int64", start=2, end=3
        )
    return e.integers(0), lowering.values["capacity"], e.integers(2**31 - 1), e.integers(3)
