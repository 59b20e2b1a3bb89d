"""Presets as bundles: what their graphs hold can be handed to TensorRT where it is meant for it."""

import onnx
import pytest
from onnx import numpy_helper

from vlmedge.runtime.bundle.manifest_file import read_manifest


def list_block_scales(bundle):
    """Weight's name -> scales of its blocks, of all graphs."""
    found = {}
    for graph in read_manifest(bundle).graphs.values():
        model = onnx.load(bundle / graph.file)
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                found[node.input[1]] = numpy_helper.to_array(values[node.input[2]])
    return found


@pytest.mark.parametrize("preset", ["orin", "smallest", "thor"])
def test_every_block_scale_of_what_tensorrt_reads_is_positive(quantize, preset):
    scales = list_block_scales(quantize(preset).bundle)
    assert any("lm_head" in name or "embed" in name for name in scales)
    for array in scales.values():
        assert (array > 0).all()


@pytest.mark.parametrize("preset", ["accurate", "cpu"])
def test_presets_for_other_engines_use_both_signs(quantize, preset):
    scales = list_block_scales(quantize(preset).bundle)
    assert any((array < 0).any() for array in scales.values())
