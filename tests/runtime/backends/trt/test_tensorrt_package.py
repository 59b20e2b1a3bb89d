"""The real Python package behind `tensorrt_engine.py`, as far as it goes without a GPU."""

import importlib
import mmap

import pytest

from vlmedge.runtime.backends.trt import tensorrt_engine
from vlmedge.runtime.backends.trt.tensorrt_engine import TensorRt, find_builders
from vlmedge.runtime.errors import BackendError


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_the_real_package_has_every_name_that_is_used(rtx):
    for kind, names in {
        "Runtime": ("deserialize_cuda_engine",),
        "ICudaEngine": (
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_dtype",
            "get_tensor_location",
            "get_tensor_mode",
            "num_optimization_profiles",
            "device_memory_size_v2",
            "create_execution_context",
            "create_runtime_config",
            "streamable_weights_size",
            "weight_streaming_budget_v2",
            "get_weight_streaming_automatic_budget",
        ),
        "IRuntimeConfig": (
            "set_execution_context_allocation_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ),
        "IExecutionContext": (
            "set_optimization_profile_async",
            "set_input_shape",
            "get_tensor_shape",
            "set_tensor_address",
            "set_device_memory",
            "execute_async_v3",
            "is_stream_capturable",
        ),
    }.items():
        assert set(names) <= set(dir(getattr(rtx, kind)))
    assert rtx.ExecutionContextAllocationStrategy.USER_MANAGED.name == "USER_MANAGED"
    assert rtx.DynamicShapesKernelSpecializationStrategy.EAGER.name == "EAGER"
    assert set(tensorrt_engine.DTYPES) <= {name for name in dir(rtx.DataType) if name.isupper()}
    assert rtx.TensorLocation.DEVICE.name == "DEVICE"


def test_the_real_package_takes_a_mapped_file_and_says_why_it_refuses_it(rtx, tmp_path):
    path = tmp_path / "x.engine"
    path.write_bytes(b"not an engine" * 1000)
    assert find_builders()["tensorrt_rtx"] == rtx.__version__
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        pytest.raises(BackendError) as error,
    ):
        TensorRt("tensorrt_rtx")(data, "x.engine")
    message = str(error.value)
    assert message.startswith(f"TensorRT-RTX {rtx.__version__} refuses x.engine: ")
    assert not message.endswith("does not say why")
    assert importlib.import_module("tensorrt_rtx") is rtx
