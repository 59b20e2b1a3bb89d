"""Our calls of the CUDA runtime, against a small library with the same functions."""

import ctypes
import gc
import inspect
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vlmedge.runtime.backends.trt import cuda_driver
from vlmedge.runtime.backends.trt.cuda_driver import CudaDriver, list_libraries
from vlmedge.runtime.backends.trt.driver import Driver
from vlmedge.runtime.backends.trt.engine_set import Gpu
from vlmedge.runtime.errors import BackendError

SOURCE = Path(__file__).with_name("fake_cudart.c")
TOOLKIT = Path("/usr/local/cuda/include")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cudart") / "libfake_cudart.so"
    compile_fake(path)
    return path


def compile_fake(path, *options):
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", *options, "-o", path, SOURCE]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)


@pytest.fixture
def fake(library):
    """Its knobs: what fails, what is alive."""
    fake = ctypes.CDLL(str(library))
    fake.fake_fail(b"", 0)
    fake.fake_devices(1)
    return fake


@pytest.fixture
def cuda(library, fake):
    return CudaDriver(library)


@needs_compiler
@pytest.mark.skipif(not (TOOLKIT / "cuda_runtime_api.h").exists(), reason="no CUDA toolkit")
def test_the_fake_has_the_declarations_of_nvidias_header(tmp_path):
    compile_fake(tmp_path / "lib.so", f"-I{TOOLKIT}", "-DWITH_CUDA_HEADER")


def test_the_driver_has_all_of_the_protocol_with_the_same_arguments():
    for name, function in inspect.getmembers(Driver, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(CudaDriver, name))
        assert list(ours.parameters) == list(inspect.signature(function).parameters), name


@needs_compiler
def test_the_gpu_is_the_current_one(cuda):
    assert cuda.gpu == Gpu("Orin 3", "8.7")
    assert cuda.measure_memory() == (5 << 32, 8 << 32)


@needs_compiler
def test_bytes_go_to_the_device_and_back(cuda, fake):
    stream = cuda.make_stream()
    data = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    address = cuda.malloc(data.nbytes)
    assert fake.fake_live(0) == 1
    back = np.zeros_like(data)
    cuda.copy_to_device(address, data, stream)
    cuda.copy_to_host(back, address, stream)
    cuda.synchronize(stream)
    assert np.array_equal(back, data)
    cuda.fill_zero(address, data.nbytes, stream)
    cuda.copy_to_host(back, address, stream)
    assert not back.any()
    cuda.free(address)
    assert fake.fake_live(0) == 0
    cuda.destroy_stream(stream)


@needs_compiler
def test_rows_are_copied_a_pitch_apart(cuda):
    stream = cuda.make_stream()
    source = np.arange(60, dtype=np.uint8)
    target = np.zeros(100, np.uint8)
    addresses = [cuda.malloc(array.nbytes) for array in (source, target)]
    cuda.copy_to_device(addresses[0], source, stream)
    cuda.copy_to_device(addresses[1], target, stream)
    cuda.copy_rows(addresses[1] + 10, 20, addresses[0] + 5, 12, 4, 3, stream)
    cuda.copy_to_host(target, addresses[1], stream)
    needed = np.zeros(100, np.uint8)
    for row in range(3):
        needed[10 + 20 * row : 14 + 20 * row] = source[5 + 12 * row : 9 + 12 * row]
    assert np.array_equal(target, needed)
    for address in addresses:
        cuda.free(address)


@needs_compiler
def test_a_recording_does_nothing_until_it_is_launched_and_then_again(cuda, fake):
    stream = cuda.make_stream()
    address = cuda.malloc(4)
    pinned = cuda.malloc_host(4)
    pinned[:] = 1
    cuda.fill_zero(address, 4, stream)
    cuda.begin_capture(stream)
    cuda.copy_to_device(address, pinned, stream)
    graph = cuda.end_capture(stream)
    assert (fake.fake_live(2), fake.fake_live(3)) == (0, 1)  # the recording itself is given back
    back = np.zeros(4, np.uint8)
    for value in (0, 7, 9):
        if value:
            pinned[:] = value
            cuda.launch(graph, stream)
        cuda.copy_to_host(back, address, stream)
        assert back.tolist() == [value] * 4
    cuda.destroy_graph(graph)
    assert fake.fake_live(3) == 0
    cuda.free(address)


@needs_compiler
def test_pinned_memory_lives_as_long_as_a_view_of_it(cuda, fake):
    array = cuda.malloc_host(64)
    view = array[8:16].view(np.float32)
    del array
    gc.collect()
    assert fake.fake_live(1) == 1
    view[:] = 1.0
    del view
    gc.collect()
    assert fake.fake_live(1) == 0


@needs_compiler
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("cudaMalloc", lambda cuda, stream, at: cuda.malloc(64)),
        ("cudaFree", lambda cuda, stream, at: cuda.free(at)),
        ("cudaMallocHost", lambda cuda, stream, at: cuda.malloc_host(64)),
        ("cudaMemGetInfo", lambda cuda, stream, at: cuda.measure_memory()),
        ("cudaStreamCreateWithFlags", lambda cuda, stream, at: cuda.make_stream()),
        ("cudaStreamDestroy", lambda cuda, stream, at: cuda.destroy_stream(stream)),
        ("cudaStreamSynchronize", lambda cuda, stream, at: cuda.synchronize(stream)),
        ("cudaMemcpyAsync", lambda cuda, stream, at: cuda.copy_to_host(HOST, at, stream)),
        ("cudaMemcpyAsync", lambda cuda, stream, at: cuda.copy_to_device(at, HOST, stream)),
        ("cudaMemcpy2DAsync", lambda cuda, stream, at: cuda.copy_rows(at, 8, at, 8, 4, 1, stream)),
        ("cudaMemsetAsync", lambda cuda, stream, at: cuda.fill_zero(at, 8, stream)),
        ("cudaStreamBeginCapture", lambda cuda, stream, at: cuda.begin_capture(stream)),
        ("cudaGraphLaunch", lambda cuda, stream, at: cuda.launch(at, stream)),
        ("cudaGraphExecDestroy", lambda cuda, stream, at: cuda.destroy_graph(at)),
    ],
)
def test_every_failure_is_told_in_cudas_words_and_once(cuda, fake, function, call):
    stream, address = cuda.make_stream(), cuda.malloc(64)
    fake.fake_fail(function.encode(), 2)
    with pytest.raises(BackendError) as error:
        call(cuda, stream, address)
    assert str(error.value).startswith(function)
    assert "cudaErrorMemoryAllocation (2), out of memory" in str(error.value)
    assert fake.fake_sticky() == 0  # or the next call would seem to fail
    fake.fake_fail(b"", 0)
    cuda.free(address)


HOST = np.zeros(8, np.uint8)


@needs_compiler
@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_a_recording_that_fails_leaves_nothing_behind(cuda, fake, function):
    stream, address = cuda.make_stream(), cuda.malloc(8)
    before = [fake.fake_live(kind) for kind in (2, 3)]
    cuda.begin_capture(stream)
    cuda.fill_zero(address, 8, stream)
    fake.fake_fail(function.encode(), 901)
    with pytest.raises(BackendError, match=function):
        cuda.end_capture(stream)
    assert [fake.fake_live(kind) for kind in (2, 3)] == before
    fake.fake_fail(b"", 0)
    cuda.free(address)


@needs_compiler
def test_an_abandoned_recording_lets_the_stream_be_used_again(cuda, fake):
    stream, address = cuda.make_stream(), cuda.malloc(8)
    cuda.begin_capture(stream)
    fake.fake_fail(b"cudaStreamEndCapture", 901)
    cuda.abandon_capture(stream)
    fake.fake_fail(b"", 0)
    assert fake.fake_sticky() == 0
    cuda.fill_zero(address, 8, stream)
    back = np.ones(8, np.uint8)
    cuda.copy_to_host(back, address, stream)
    assert not back.any()
    cuda.free(address)


@needs_compiler
def test_a_machine_without_a_gpu_is_told_why(library, fake):
    fake.fake_devices(0)
    with pytest.raises(BackendError, match="there is no GPU"):
        CudaDriver(library)
    fake.fake_fail(b"cudaGetDeviceCount", 2)
    with pytest.raises(BackendError, match="out of memory"):
        CudaDriver(library)


def test_a_machine_without_the_library_is_told_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(cuda_driver, "list_libraries", lambda: ["libnosuch_cudart.so.99"])
    with pytest.raises(BackendError, match="JetPack"):
        CudaDriver()


def test_a_library_of_something_else_is_told(tmp_path):
    (tmp_path / "libcudart.so").write_bytes(b"not a library")
    with pytest.raises(BackendError, match="no GPU can be used"):
        CudaDriver(tmp_path / "libcudart.so")


def test_a_reason_that_several_libraries_give_is_told_once(monkeypatch, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        (folder / "libcudart.so").write_bytes(b"not a library")
    names = [str(folder / "libcudart.so") for folder in folders]
    monkeypatch.setattr(cuda_driver, "list_libraries", lambda: names)
    with pytest.raises(BackendError) as error:
        CudaDriver()
    message = str(error.value)
    assert message.startswith(f"no GPU can be used: {names[0]}: ")
    assert message.count("libcudart") == message.count("file too short") == 1


@needs_compiler
def test_an_older_library_is_tried_where_the_newest_finds_no_driver(
    library, fake, monkeypatch, tmp_path
):
    newer = tmp_path / "newer.so"
    shutil.copy(library, newer)
    ctypes.CDLL(str(newer)).fake_devices(0)
    monkeypatch.setattr(cuda_driver, "list_libraries", lambda: [str(newer), str(library)])
    assert CudaDriver().gpu.sm == "8.7"


def test_libraries_of_python_packages_are_found(monkeypatch, tmp_path):
    path = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = list_libraries()
    assert found.index("libcudart.so.13") < found.index("libcudart.so.12") < found.index(str(path))
