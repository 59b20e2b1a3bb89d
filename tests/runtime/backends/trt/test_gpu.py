"""Real engines on a real GPU, beside ONNX Runtime's CPU; skipped where there is no GPU."""

import gc

import numpy as np
import pytest

from vlmedge.runtime import GenerationOptions
from vlmedge.runtime.backends.trt.backend import open_engines
from vlmedge.runtime.backends.trt.cuda_driver import CudaDriver
from vlmedge.runtime.backends.trt.tensorrt_engine import find_builders
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BackendError
from vlmedge.runtime.inputs.request import RequestMaker
from vlmedge.runtime.model import Model

pytestmark = pytest.mark.gpu

# float16 of two layers against float32: what rounding does to logits of about 1.
TOLERANCE = 0.05
OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def cuda():
    try:
        return CudaDriver()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def built(cuda, make_bundle, tmp_path_factory):
    """Settings -> a bundle with engines that were built here, for the newest target that fits."""
    from vlmedge.export.engines.build import build_engines
    from vlmedge.export.engines.compatibility import find_suited_target
    from vlmedge.export.engines.settings import BuildSettings
    from vlmedge.export.lowering.exporter import export_for_target
    from vlmedge.export.lowering.options import LoweringOptions

    builders = find_builders()
    if not builders:
        pytest.skip("TensorRT is not installed")
    builder, version = next(iter(builders.items()))
    made = {}

    def build(target=None, dtype="fp16", **settings):
        target = target or find_suited_target(builder, version)
        key = (target, dtype, *sorted(settings.items()))
        if key not in made:
            bundle = tmp_path_factory.mktemp("built") / "bundle"
            options = LoweringOptions(target=target, dtype=dtype)
            export_for_target(make_bundle("tiny").checkpoint, bundle, options)
            try:
                build_engines(bundle, BuildSettings(max_batch=2, **settings))
            except BackendError as error:
                if "compute capability" in str(error):
                    pytest.skip(f"{builder} {version} builds nothing for this GPU: {error}")
                raise
            made[key] = bundle
        return made[key]

    return build


def open_backend(bundle, **options):
    return open_engines(bundle, read_manifest(bundle), **options)


@pytest.fixture(params=[None, "jetpack-6.2"], ids=["newest", "append"])
def bundle(request, built):
    """In place where this TensorRT can, and appended as on JetPack 6."""
    return built(request.param)


def test_the_gpu_says_what_it_is(cuda):
    assert cuda.gpu.name
    free, total = cuda.measure_memory()
    assert 0 < free <= total


def test_bytes_and_rows_move_on_the_device(cuda):
    stream = cuda.make_stream()
    source = np.arange(4096, dtype=np.uint8)
    target = np.zeros(4096, np.uint8)
    first, second = cuda.malloc(4096), cuda.malloc(4096)
    cuda.copy_to_device(first, source, stream)
    cuda.fill_zero(second, 4096, stream)
    cuda.copy_rows(second + 64, 512, first + 16, 256, 32, 4, stream)
    cuda.copy_to_host(target, second, stream)
    cuda.synchronize(stream)
    needed = np.zeros(4096, np.uint8)
    for row in range(4):
        needed[64 + 512 * row : 96 + 512 * row] = source[16 + 256 * row : 48 + 256 * row]
    assert np.array_equal(target, needed)
    for address in (first, second):
        cuda.free(address)
    cuda.destroy_stream(stream)


def test_a_recording_runs_again_with_new_content(cuda):
    stream, address = cuda.make_stream(), cuda.malloc(64)
    given, got = cuda.malloc_host(64), cuda.malloc_host(64)
    cuda.begin_capture(stream)
    cuda.copy_to_device(address, given, stream)
    cuda.copy_to_host(got, address, stream)
    graph = cuda.end_capture(stream)
    for value in (3, 200):
        given[:] = value
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        assert got.tolist() == [value] * 64
    cuda.destroy_graph(graph)
    cuda.free(address)


def test_a_failed_recording_leaves_the_stream_usable(cuda):
    stream = cuda.make_stream()
    cuda.begin_capture(stream)
    with pytest.raises(BackendError):
        cuda.synchronize(stream)  # not permitted while recording
    cuda.abandon_capture(stream)
    cuda.synchronize(stream)


def test_image_embeds_are_those_of_onnx_runtime(bundle, reference):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 588), np.uint8)
    positions = np.indices((8, 8)).reshape(2, 64).T[None]
    backend = open_backend(bundle)
    for num_patches in (16, 64):
        feed = pixels[:, :num_patches], np.ascontiguousarray(positions[:, :num_patches])
        needed = reference._engine._backend.encode_images("vision", *feed)
        assert backend.encode_images("vision", *feed) == pytest.approx(needed, abs=TOLERANCE)
    backend.close()


@pytest.mark.parametrize("batch", [1, 2])
def test_logits_are_those_of_onnx_runtime(bundle, reference, read_logits, batch):
    backend = open_backend(bundle)
    needed = read_logits(reference._engine._backend, batch)
    assert read_logits(backend, batch) == pytest.approx(needed, abs=TOLERANCE)
    backend.close()


def test_a_recorded_step_gives_the_same_bits(bundle, read_logits):
    recorded, plain = open_backend(bundle), open_backend(bundle)
    plain._permit.is_granted = False
    assert np.array_equal(read_logits(recorded), read_logits(plain))
    assert recorded.notices == ()
    for backend in (recorded, plain):
        backend.close()


@pytest.mark.parametrize("parts", [{"split": 2}, {"split": 2, "separate_lm_head": True}])
def test_a_split_decoder_is_the_same_decoder(built, reference, read_logits, parts):
    backend = open_backend(built(**parts))
    needed = read_logits(reference._engine._backend)
    assert read_logits(backend) == pytest.approx(needed, abs=TOLERANCE)
    backend.close()


@pytest.mark.parametrize("residency", ["all", "one"])
def test_questions_are_answered_and_memory_comes_back(cuda, built, reference, residency):
    """In float32, where tokens are not near ties: written out, for no kernel attends in it."""
    bundle = built("jetpack-6.2", "fp32")
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    needed = reference.answer("What is it?", [picture], options=OPTIONS)
    free = []
    for _ in range(3):
        manifest = read_manifest(bundle)
        backend = open_engines(bundle, manifest, residency=residency)
        maker = RequestMaker(bundle, manifest, None)
        with Model(manifest, maker, Embeddings(bundle, manifest.embedding), backend) as model:
            got = model.answer("What is it?", [picture], options=OPTIONS)
        assert got.token_ids[:4] == needed.token_ids[:4]  # TF32 adds up
        del backend, model
        gc.collect()
        free.append(cuda.measure_memory()[0])
    assert free[-1] > free[0] - (16 << 20)
