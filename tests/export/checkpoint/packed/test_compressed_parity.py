"""Layers of compressed-tensors against the library's own packing and unpacking."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.checkpoint.packed.matrix import dequantize

FORMATS = [
    "ct-w4a16", "ct-w4a16-asymmetric", "ct-w8a16", "ct-w8a8", "ct-w8a8-static",
    "ct-w8a8-asymmetric", "ct-fp8-dynamic", "ct-fp8-static",
]  # fmt: skip


def bits_of(tensor):
    """Compared as bytes: float8 has no equality of its own."""
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_the_library_packs_and_unpacks_alike(packers, tmp_path, request, name):
    reason = "compressed-tensors is not installed"
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    compressors = pytest.importorskip("compressed_tensors.compressors", reason=reason)
    folder = tmp_path / name
    packers.pack_checkpoint(request.config.rootpath / "samples/reader", folder, name)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    whole = quantization.QuantizationConfig.model_validate(config)
    scheme = whole.config_groups["group_0"]
    library = compressors.BaseCompressor.get_value_from_registry(config["format"])
    tensors = load_file(folder / "model.safetensors")
    for layer, matrix in list(open_checkpoint(folder).packed.items())[:7]:
        parts = {
            key.removeprefix(f"{layer}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{layer}.") and not key.endswith(".bias")
        }
        values = matrix.read()
        ours = torch.from_numpy(dequantize(matrix, values))
        theirs = library.decompress(dict(parts), scheme)["weight"]
        # bfloat16 scales times integers of 8 bits are exact in float32, so both round once
        assert torch.equal(theirs, ours.to(theirs.dtype)), layer
        exact = {**parts, "weight_scale": parts["weight_scale"].float()}
        assert torch.equal(library.decompress(dict(exact), scheme)["weight"].float(), ours), layer
        given = {"weight": ours, "weight_scale": exact["weight_scale"]}
        if "weight_zero_point" in parts:
            signed = values.zero_points.astype(np.int16) - (1 << (matrix.bits - 1))
            given["weight_zero_point"] = torch.from_numpy(signed.astype(np.int8))
        again = library.compress(given, scheme)
        for key in {"weight_packed", "weight", "weight_shape", "weight_zero_point"} & parts.keys():
            assert torch.equal(bits_of(again[key]), bits_of(parts[key])), (layer, key)
