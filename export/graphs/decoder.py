"""Build the decoder graph: embeddings, M-RoPE positions and a KV cache to logits of one position.

    inputs_embeds [B, S, D]     position_ids [3, B, S]     past [B, heads, capacity, head_dim]
          |                            |                                  |
          |                     cos, sin [B, S, head_dim / 2]             |
    28 x  norm - q, k, v - rotary (q, k) - grouped attention <------------+-> present, in place
          |              - o - norm - gate, up - SiLU(gate) * up - down
          +-- in the last layer only the asked-for position goes on after attention
          |
        norm - lm_head -> logits [B, V]

The matrices of q, k, v, and those of gate and up, are stored as one each: fewer, longer products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...quant.rounding.weight_only import CONTRIB
from ..checkpoint.open import Checkpoint
from .data_file import DataFile
from .graph_builder import GraphBuilder
from .layers import Precision, batch_shape, flatten_tokens, linear, matmul, rotate, rotation_tables
from .residual import add_and_norm

EMBEDDINGS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def build_decoder(
    checkpoint: Checkpoint, data: DataFile, precision: Precision, lm_head: Precision
) -> tuple[ir.Model, dict[str, str]]:
    """Build the graph.

    Returns:
        The model, and how each checkpoint tensor it uses is stored.
    """
    spec = checkpoint.spec.decoder
    graph = GraphBuilder("decoder", checkpoint, data)
    embeds = graph.input("inputs_embeds", "float32", ["batch", "sequence", spec.hidden_size])
    position_ids = graph.input("position_ids", "int64", [3, "batch", "sequence"])
    lengths = (
        graph.input("seqlens_k", "int32", ["batch"]),
        graph.input("total_sequence_length", "int32", []),
    )
    logit_index = graph.input("logit_index", "int64", ["batch"])
    cache = ["batch", spec.num_kv_heads, "capacity", spec.head_dim]
    past = [
        (
            graph.input(f"past_key_values.{i}.key", "float32", cache),
            graph.input(f"past_key_values.{i}.value", "float32", cache),
        )
        for i in range(spec.num_layers)
    ]

    tables = _rotation_tables(graph, position_ids)
    per_row = batch_shape(graph, embeds, 2, [-1], "/model/per_row")
    pick = _make_picker(graph, logit_index)
    x = flatten_tokens(graph, embeds, spec.hidden_size, "/model/Reshape")
    normed = graph.op(
        "RMSNormalization",
        [x, graph.vector("model.layers.0.input_layernorm.weight")],
        "/model/layers.0/input_layernorm/RMSNorm",
        {"axis": -1, "epsilon": checkpoint.spec.rms_norm_eps},
    )
    presents: list[tuple[ir.Value, ir.Value]] = []
    for i in range(spec.num_layers):
        layer, node = f"model.layers.{i}", f"/model/layers.{i}"
        attention, present = _attend(graph, normed, tables, per_row, past[i], lengths, i, precision)
        presents.append(present)
        if i + 1 == spec.num_layers:  # nothing after attention looks at other positions
            attention = pick(attention, f"{node}/attn/pick")
            residual = graph.op("Reshape", [x, per_row], f"{node}/residual/Reshape")
            x = pick(residual, f"{node}/residual/pick")
        else:
            attention = flatten_tokens(
                graph, attention, spec.hidden_size, f"{node}/attn/Reshape_back"
            )
        projected = linear(
            graph,
            attention,
            [f"{layer}.self_attn.o_proj"],
            f"{node}/attn/o_proj",
            precision,
            bias=False,
        )
        normed, x = _add_and_norm(
            graph,
            x,
            projected,
            f"{layer}.post_attention_layernorm",
            f"{node}/post_attention_layernorm",
        )
        mlp = _feed_forward(graph, normed, i, precision)
        last = i + 1 == spec.num_layers
        norm = "model.norm" if last else f"model.layers.{i + 1}.input_layernorm"
        normed, x = _add_and_norm(graph, x, mlp, norm, "/" + norm.replace(".", "/", 1), last)

    logits = _head(graph, normed, lm_head)
    graph.output(logits, "logits", "float32", ["batch", spec.vocab_size])
    for i, (key, value) in enumerate(presents):
        graph.output(key, f"present.{i}.key", "float32", cache)
        graph.output(value, f"present.{i}.value", "float32", cache)
    return graph.build(), graph.precision


def _attend(
    graph: GraphBuilder,
    normed: ir.Value,
    tables: tuple[ir.Value, ir.Value],
    per_row: ir.Value,
    past: tuple[ir.Value, ir.Value],
    lengths: tuple[ir.Value, ir.Value],
    index: int,
    precision: Precision,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """Attention of one layer before o_proj, float32[B, S, D], and the layer's new cache."""
    spec = graph.checkpoint.spec.decoder
    layer, node = f"model.layers.{index}.self_attn", f"/model/layers.{index}/attn"
    names = [f"{layer}.{part}_proj" for part in "qkv"]
    qkv = linear(graph, normed, names, f"{node}/qkv_proj", precision, bias=True)
    qkv = graph.op("Reshape", [qkv, per_row], f"{node}/Reshape")
    kv_size = spec.num_kv_heads * spec.head_dim
    sizes = graph.constant("qkv_sizes", np.array([spec.hidden_size, kv_size, kv_size], np.int64))
    q, k, v = graph.ops("Split", [qkv, sizes], f"{node}/Split", {"axis": 2}, num_outputs=3)
    q = rotate(graph, q, tables, spec.num_heads, f"{node}/q_rotary/RotaryEmbedding")
    k = rotate(graph, k, tables, spec.num_kv_heads, f"{node}/k_rotary/RotaryEmbedding")
    attention, key, value = graph.ops(
        "GroupQueryAttention",
        [q, k, v, *past, *lengths],
        f"{node}/GroupQueryAttention",
        {"num_heads": spec.num_heads, "kv_num_heads": spec.num_kv_heads},
        CONTRIB,
        num_outputs=3,
    )
    return attention, (key, value)


def _feed_forward(
    graph: GraphBuilder, normed: ir.Value, index: int, precision: Precision
) -> ir.Value:
    layer, node = f"model.layers.{index}.mlp", f"/model/layers.{index}/mlp"
    both = linear(
        graph,
        normed,
        [f"{layer}.gate_proj", f"{layer}.up_proj"],
        f"{node}/gate_up_proj",
        precision,
        bias=False,
    )
    gate, up = graph.ops(
        "Split", [both], f"{node}/Split", {"axis": 1, "num_outputs": 2}, num_outputs=2
    )
    # x * sigmoid(alpha * x) with alpha 1 is SiLU, in one threaded kernel
    gate = graph.op("QuickGelu", [gate], f"{node}/act/SiLU", {"alpha": 1.0}, CONTRIB)
    product = graph.op("Mul", [gate, up], f"{node}/Mul")
    return linear(
        graph, product, [f"{layer}.down_proj"], f"{node}/down_proj", precision, bias=False
    )


def _add_and_norm(
    graph: GraphBuilder, x: ir.Value, branch: ir.Value, norm: str, node: str, last: bool = False
) -> tuple[ir.Value, ir.Value]:
    """RMSNorm of the residual sum, and the sum."""
    return add_and_norm(
        graph,
        "SkipSimplifiedLayerNormalization",
        x,
        branch,
        [graph.vector(f"{norm}.weight")],
        graph.checkpoint.spec.rms_norm_eps,
        f"{node}/SkipRMSNorm",
        last=last,
    )


def _rotation_tables(graph: GraphBuilder, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
    """M-RoPE: sections of the frequencies turn by t, by h and by w."""
    spec = graph.checkpoint.spec
    rope = spec.rope
    inv_freq = rope.inverse_frequencies(spec.decoder.head_dim)
    coordinate = np.repeat(np.arange(3, dtype=np.int64), rope.mrope_section)
    node = "/model/rotary"
    cos, sin = rotation_tables(graph, position_ids, 0, coordinate, inv_freq, node)
    if rope.attention_factor == 1:
        return cos, sin
    factor = graph.constant(f"{node}/attention_factor", np.array(rope.attention_factor, np.float32))
    return (
        graph.op("Mul", [cos, factor], f"{node}/cos/Mul"),
        graph.op("Mul", [sin, factor], f"{node}/sin/Mul"),
    )


def _make_picker(graph: GraphBuilder, logit_index: ir.Value):
    """float32[B, S, D] -> float32[B, D]: of each row of the batch the position it asks for."""
    last = graph.constant("last_axis", np.array([-1], np.int64))
    index = graph.op("Unsqueeze", [logit_index, last], "/model/logit_index/Unsqueeze")

    def pick(x: ir.Value, node: str) -> ir.Value:
        return graph.op("GatherND", [x, index], f"{node}/GatherND", {"batch_dims": 1})

    return pick


def _head(graph: GraphBuilder, normed: ir.Value, precision: Precision) -> ir.Value:
    """Logits; a tied head is stored again in its own format, beside the embedding table."""
    tied = graph.checkpoint.spec.tied_lm_head
    source = graph.source(EMBEDDINGS if tied else LM_HEAD)
    graph.precision[LM_HEAD] = str(precision)
    return matmul(graph, normed, LM_HEAD, (source,), "/lm_head", precision)
