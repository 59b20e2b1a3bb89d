"""What `--selfcheck` finds in bundles for TensorRT; those for ONNX Runtime are in test_exporter."""

import onnx
import pytest

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.verify.selfcheck import check_bundle
from vlmedge.runtime.errors import BundleError


@pytest.fixture
def checkpoint(make_bundle):
    return make_bundle("tiny").checkpoint


@pytest.mark.parametrize("target", ["jetpack-6.2", "jetpack-7.2"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_graphs_for_tensorrt_run(checkpoint, tmp_path, target, dtype):
    export_for_target(checkpoint, tmp_path / "bundle", LoweringOptions(target, dtype))
    checks = check_bundle(tmp_path / "bundle")
    assert [check.name for check in checks] == ["vision", "vision_video", "decoder"]
    assert all(0 < check.largest_output < 1e4 for check in checks if check.largest_output)
    assert None not in [check.largest_output for check in checks]


@pytest.mark.parametrize("link_weights", [False, True])
def test_bfloat16_is_checked_but_not_run(checkpoint, tmp_path, link_weights):
    options = LoweringOptions("jetpack-7.2", link_weights=link_weights)
    export_for_target(checkpoint, tmp_path / "bundle", options)
    checks = check_bundle(tmp_path / "bundle")
    assert [check.largest_output for check in checks] == [None, None, None]
    assert all(check.num_inferred > 50 for check in checks)


def test_an_output_of_another_type_than_promised_is_found(checkpoint, tmp_path):
    export_for_target(checkpoint, tmp_path / "bundle", LoweringOptions("jetpack-7.2"))
    path = tmp_path / "bundle" / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1
    content = model.SerializeToString()
    path.write_bytes(content[: path.stat().st_size])
    with pytest.raises(BundleError):
        check_bundle(tmp_path / "bundle")
