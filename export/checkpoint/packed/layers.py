"""Find the packed layers among a checkpoint's tensors, and the tensors that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..weights.tensor_source import TensorSource
from .awq import AWQ_PARTS, read_awq
from .compressed import COMPRESSED_PARTS, REFUSED_PARTS, read_compressed_layer
from .gptq import GPTQ_PARTS, read_gptq
from .matrix import PackedMatrix
from .scheme import LayerScheme, Quantization
from .words import Parts

_PARTS = {"awq": AWQ_PARTS, "gptq": GPTQ_PARTS, "compressed-tensors": COMPRESSED_PARTS}
_READERS: dict[str, Callable[[str, Parts, LayerScheme], PackedMatrix]] = {
    "awq": read_awq,
    "gptq": read_gptq,
    "compressed-tensors": read_compressed_layer,
}
_PACKED_DTYPES = ("I8", "I32", "F8_E4M3")
_ALL_PARTS = {*AWQ_PARTS, *GPTQ_PARTS, *COMPRESSED_PARTS, *REFUSED_PARTS, "absmax", "quant_map"}


def find_packed(
    quantization: Quantization | None, tensors: Mapping[str, TensorSource]
) -> tuple[dict[str, PackedMatrix], dict[str, TensorSource]]:
    """Pick the packed layers out of a checkpoint's tensors.

    Zero points and orders of inputs are read, which are small; the codes and scales are not.

    Args:
        quantization: of its configuration; None of a float checkpoint.
        tensors: by the hub's names.

    Returns:
        packed: by the layer's name, "model.layers.0.self_attn.q_proj".
        plain: the tensors that belong to none: norms, biases, layers that stayed float.

    Raises:
        ValueError: names the layer and what doesn't fit.
    """
    if quantization is None:
        for name in tensors:
            if name.rpartition(".")[2] in _ALL_PARTS:
                raise ValueError(
                    f"{name} belongs to a packed layer, but config.json has no quantization_config"
                )
        return {}, dict(tensors)
    layers, plain = _sort_out(quantization.method, tensors)
    packed = {
        layer: _read_layer(quantization, layer, parts) for layer, parts in sorted(layers.items())
    }
    if not packed:
        raise ValueError(
            f"quantization_config says {quantization.method}, but no layer is packed: "
            "remove it from config.json if the weights are float"
        )
    return packed, plain


def _sort_out(
    method: str, tensors: Mapping[str, TensorSource]
) -> tuple[dict[str, dict[str, TensorSource]], dict[str, TensorSource]]:
    layers: dict[str, dict[str, TensorSource]] = {}
    plain: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if method == "compressed-tensors" and part in REFUSED_PARTS:
            raise ValueError(f"{name}: {REFUSED_PARTS[part]}")
        is_weight = method == "compressed-tensors" and part == "weight"
        if part in _PARTS[method] or (is_weight and tensor.dtype in _PACKED_DTYPES):
            layers.setdefault(layer, {})[part] = tensor
        else:
            plain[name] = tensor
    return layers, plain


def _read_layer(quantization: Quantization, layer: str, parts: Parts) -> PackedMatrix:
    if layer.endswith("embed_tokens"):
        raise ValueError(f"{layer} is packed: packed embeddings are not supported")
    scheme = quantization.scheme_of(layer)
    if scheme is None:
        raise ValueError(
            f"{layer} is packed ({', '.join(sorted(parts))}), but the quantization_config leaves "
            "it float"
        )
    return _READERS[quantization.method](layer, parts, scheme)
