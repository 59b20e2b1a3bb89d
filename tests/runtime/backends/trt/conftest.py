"""A GPU and a TensorRT that are none: fakes of the two interfaces, and manifests for them."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlmedge.runtime.backends.trt import engine_set as sets
from vlmedge.runtime.bundle.embedding_table import EmbeddingTable
from vlmedge.runtime.bundle.manifest import (
    DecoderSpec,
    FileRecord,
    GenerationDefaults,
    GraphSpec,
    Manifest,
    PixelBudget,
    Source,
    TargetRecord,
    TensorSpec,
    TokenIds,
    VisionSpec,
)
from vlmedge.runtime.bundle.manifest_file import SCHEMA_VERSION

HERE = Path(__file__).parent


def load_neighbour(name):
    """A file beside this one as a module."""
    full = f"trt_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def fake_driver():
    """fake_driver.py: `FakeDriver`."""
    return load_neighbour("fake_driver")


@pytest.fixture(scope="session")
def fake_engine():
    """fake_engine.py: `FakeLoader`, `FakeEngine`."""
    return load_neighbour("fake_engine")


@pytest.fixture
def driver(fake_driver):
    """A GPU without anything on it."""
    return fake_driver.FakeDriver()


@pytest.fixture(scope="session")
def make_twin(make_bundle, tmp_path_factory):
    """Target and settings -> a TensorRT bundle in float32 with its fake engines, made once."""
    from vlmedge.export.engines.settings import BuildSettings
    from vlmedge.export.lowering.exporter import export_for_target
    from vlmedge.export.lowering.options import LoweringOptions
    from vlmedge.export.lowering.targets import find_target

    bundles, built = {}, {}

    def make(target, *, dtype="fp32", context=None, cuts=(), **settings):
        appends = find_target(target).cache == "append"
        source = (target, dtype, None if appends else context)
        if source not in bundles:
            bundles[source] = tmp_path_factory.mktemp("twin") / "bundle"
            options = LoweringOptions(target=target, dtype=dtype, context=source[2])
            export_for_target(make_bundle("tiny").checkpoint, bundles[source], options)
        if appends and context is not None:
            settings["context"] = context
        key = (*source, cuts, *sorted(settings.items()))
        if key not in built:
            bundle = tmp_path_factory.mktemp("built") / "bundle"
            shutil.copytree(bundles[source], bundle)
            load_neighbour("fake_build").build(bundle, BuildSettings(**settings), cuts=cuts)
            built[key] = bundle
        return built[key]

    return make


@pytest.fixture
def open_fake(driver, fake_engine):
    """A bundle with fake engines -> a model that runs on them, with `.backend` and `.loader`."""
    from vlmedge.runtime.backends.trt.backend import TrtBackend
    from vlmedge.runtime.backends.trt.choose import choose_set
    from vlmedge.runtime.bundle.embeddings import Embeddings
    from vlmedge.runtime.bundle.manifest_file import read_manifest
    from vlmedge.runtime.inputs.request import RequestMaker
    from vlmedge.runtime.model import Model

    def open_bundle(bundle, *, residency="all", can_capture=True):
        manifest = read_manifest(bundle)
        chosen = choose_set(bundle, manifest, driver.gpu, {"tensorrt": "10.3.0"})
        loader = fake_engine.FakeLoader(driver, chosen.engine_set, can_capture=can_capture)
        backend = TrtBackend(manifest, chosen, driver, loader, residency=residency)
        maker = RequestMaker(bundle, manifest, None)
        model = Model(manifest, maker, Embeddings(bundle, manifest.embedding), backend)
        return SimpleNamespace(model=model, backend=backend, loader=loader, driver=driver)

    return open_bundle


@pytest.fixture(scope="session")
def reference(make_bundle):
    """The same weights in ONNX Runtime's own flavor."""
    from vlmedge.runtime import Model

    with Model.load(make_bundle("tiny").bundle, num_threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def manifest():
    """Of a TensorRT bundle with two layers, whose files exist nowhere."""
    return make_manifest()


def make_manifest(cache="append", capacity=None):
    size = "capacity" if capacity is None else capacity
    total = "total" if cache == "append" else size
    tensors = [
        TensorSpec("inputs_embeds", "float32", ("batch", "sequence", 64)),
        TensorSpec("position_ids", "int64", (3, "batch", "sequence")),
        TensorSpec("logit_index", "int64", ("batch",)),
        TensorSpec("attention_mask", "bool", ("batch", 1, "sequence", total)),
    ]
    if cache == "in_place":
        tensors.append(TensorSpec("write_indices", "int64", ("batch",)))
    layers = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    pasts = [
        TensorSpec(f"past_key_values.{name}", "float32", ("batch", 2, size, 16)) for name in layers
    ]
    rows = size if cache == "in_place" else "sequence"
    presents = [TensorSpec(f"present.{name}", "float32", ("batch", 2, rows, 16)) for name in layers]
    vision = GraphSpec(
        "vision.onnx",
        (
            TensorSpec("pixel_values", "uint8", ("num_images", "num_patches", 588)),
            TensorSpec("position_ids", "int64", ("num_images", "num_patches", 2)),
        ),
        (TensorSpec("image_embeds", "float32", ("num_images", "num_tokens", 64)),),
    )
    decoder = GraphSpec(
        "decoder.onnx",
        (*tensors, *pasts),
        (TensorSpec("logits", "float32", ("batch", 400)), *presents),
    )
    names = ("decoder.onnx", "decoder.onnx.data", "embedding.bin", "template", "tokenizer.json")
    names += ("vision.onnx", "vision.onnx.data")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by="vlmedge test",
        family="qwen2_vl",
        flavor="tensorrt",
        source=Source("none", {}),
        vision=VisionSpec(2, 32, 2, 14, 2, 2),
        decoder=DecoderSpec(2, 64, 4, 2, 16, 400, 1024),
        tokens=TokenIds(1, 2, 3, 4, (5,), 5),
        pixels=PixelBudget(3136, 100352, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        generation=GenerationDefaults(),
        mrope_rule="paper",
        embedding=EmbeddingTable("embedding.bin", "float32", (400, 64)),
        tokenizer_file="tokenizer.json",
        chat_template_file="template",
        graphs={"vision": vision, "decoder": decoder},
        precision={},
        coverage=(),
        quantization=None,
        files={name: FileRecord(1, f"{i:x}" * 64) for i, name in enumerate(names)},
        target=TargetRecord("test", "10.3", "float32", cache, capacity),
    )


@pytest.fixture(scope="session")
def engine_set(manifest):
    """A set that fits `manifest`, an Orin and TensorRT 10.3.0; its files exist nowhere."""
    graphs = manifest.graphs

    def shapes(spec, sizes):
        sides = [sizes.get(size, (size, size, size)) for size in spec.shape]
        return sets.ShapeRange(*(tuple(side) for side in zip(*sides, strict=True)))

    def profile(graph, use, **sizes):
        dynamic = [spec for spec in graphs[graph].inputs if not all(map(_is_int, spec.shape))]
        return sets.Profile(use, {spec.name: shapes(spec, sizes) for spec in dynamic})

    def record(graph, *profiles):
        spec = graphs[graph]
        name = f"{graph}.engine"
        return sets.EngineRecord(graph, name, 10, "a" * 64, spec.inputs, spec.outputs, profiles)

    many = {"batch": (1, 1, 2), "capacity": (1, 64, 256), "total": (2, 128, 320)}
    vision = record(
        "vision",
        profile("vision", "vision", num_images=(1, 1, 2), num_patches=(4, 16, 64)),
        profile("vision", "vision", num_images=(1, 1, 2), num_patches=(68, 128, 256)),
    )
    decoder = record(
        "decoder",
        profile("decoder", "prefill", sequence=(1, 64, 64), **many),
        profile("decoder", "decode", sequence=(1, 1, 1), **many),
    )
    return sets.EngineSet(
        schema_version=sets.SCHEMA_VERSION,
        created_by="vlmedge test",
        builder="tensorrt",
        version="10.3.0",
        gpu=sets.Gpu("Orin", "8.7"),
        dtype="float32",
        command="vlmedge build bundle --max-batch 2",
        settings={"max_batch": "2"},
        graph_sha256={name: manifest.files[spec.file].sha256 for name, spec in graphs.items()},
        chains={"vision": (vision,), "decoder": (decoder,)},
        weights_sha256=sets.record_weights(manifest),
    )


def _is_int(size):
    return isinstance(size, int)


@pytest.fixture
def write_set():
    """Writes a set into BUNDLE/engines/KEY with engine files of some content."""

    def write(bundle, engine_set, key="key", content=b"not really"):
        folder = bundle / sets.ENGINES_FOLDER / key
        folder.mkdir(parents=True)
        for engine in sets.list_engines(engine_set):
            (folder / engine.file).write_bytes(content[: engine.bytes])
        (folder / sets.ENGINE_SET_NAME).write_text(sets.to_json(engine_set))
        return folder

    return write


@pytest.fixture(scope="session")
def read_logits():
    """Logits of a prompt of nine tokens and four more, one at a time, for each of B sequences."""

    def read(backend, batch=1):
        cache = backend.make_cache(batch, 64)
        rng = np.random.default_rng(5)
        rows = []
        decode = None
        for start, num_tokens in ((0, 9), (9, 1), (10, 1), (11, 1), (12, 1)):
            call = decode or backend.bind_decoder(cache, num_tokens)
            decode = call if num_tokens == 1 else None
            call.inputs_embeds[...] = rng.normal(0, 0.5, call.inputs_embeds.shape)
            call.position_ids[...] = start + np.arange(num_tokens)
            call.seqlens_k[...] = start + num_tokens - 1
            call.total_sequence_length[...] = start + num_tokens
            call.logit_index[...] = num_tokens - 1
            rows.append(call.run().copy())
        return np.concatenate(rows)

    return read
