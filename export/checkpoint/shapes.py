"""Every tensor that a model of a config has, and what differs from it in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .config import ModelSpec
from .packed.matrix import PackedMatrix
from .weights.tensor_source import TensorSource
from .weights.tensors import few_names
from .weights.wrapped_names import explain_wrapped

FLOAT_DTYPES = ("F32", "F16", "BF16")


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this config must have, by the hub's name."""
    vision, decoder = spec.vision, spec.decoder
    dim, mlp, merged, hidden = (
        vision.embed_dim,
        spec.vision_mlp_size,
        spec.merged_size,
        decoder.hidden_size,
    )
    patch = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (dim, *patch)}

    def linear(name: str, out: int, size: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, size)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    for i in range(vision.depth):
        block = f"visual.blocks.{i}"
        layer_norm(f"{block}.norm1")
        layer_norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * dim, dim)
        linear(f"{block}.attn.proj", dim, dim)
        linear(f"{block}.mlp.fc1", mlp, dim)
        linear(f"{block}.mlp.fc2", dim, mlp)
    layer_norm("visual.merger.ln_q")
    linear("visual.merger.mlp.0", merged, merged)
    linear("visual.merger.mlp.2", hidden, merged)

    shapes["model.embed_tokens.weight"] = (decoder.vocab_size, hidden)
    kv_size = decoder.num_kv_heads * decoder.head_dim
    for i in range(decoder.num_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        linear(f"{layer}.self_attn.k_proj", kv_size, hidden)
        linear(f"{layer}.self_attn.v_proj", kv_size, hidden)
        linear(f"{layer}.self_attn.o_proj", hidden, hidden, bias=False)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{layer}.mlp.gate_proj", spec.decoder_mlp_size, hidden, bias=False)
        linear(f"{layer}.mlp.up_proj", spec.decoder_mlp_size, hidden, bias=False)
        linear(f"{layer}.mlp.down_proj", hidden, spec.decoder_mlp_size, bias=False)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_lm_head:
        shapes["lm_head.weight"] = (decoder.vocab_size, hidden)
    return shapes


def find_problems(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorSource],
    packed: Mapping[str, PackedMatrix] | None = None,
) -> Iterable[str]:
    """Say what is missing, what is too many, and whose shape or dtype is another.

    A packed layer stands for the weight of its name.
    """
    if wrapped := explain_wrapped(tensors, expected):
        yield wrapped
        return
    shapes = {f"{layer}.weight": matrix.shape for layer, matrix in (packed or {}).items()}
    if both := sorted(shapes.keys() & tensors):
        yield f"packed and float as well {few_names(both)}"
    if unknown := sorted(shapes.keys() - expected.keys()):
        yield f"packed, and not part of the model {few_names(unknown)}"
    for name, shape in shapes.items():
        if name in expected and expected[name] != shape:
            yield f"{name} is packed as {list(shape)}, the config needs {list(expected[name])}"
    if missing := [name for name in expected if name not in tensors and name not in shapes]:
        yield f"missing {few_names(missing)}"
    extra = [name for name in tensors if name not in expected]
    if extra:
        yield f"not part of the model {few_names(extra)}"
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            yield f"{name} is {list(tensor.shape)}, the config needs {list(shape)}"
        if tensor is not None and tensor.dtype not in FLOAT_DTYPES:
            yield f"{name} is {tensor.dtype}, needed one of {', '.join(FLOAT_DTYPES)}"
