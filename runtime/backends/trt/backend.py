"""TensorRT engines behind the Backend protocol: one GPU, one stream, the cache stays on the device.

Engines are loaded when they are first needed, each checked against its recorded hash before.
"""

from __future__ import annotations

import time
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...bundle.guard import BundleGuard
from ...bundle.manifest import CacheMode, Manifest
from ...errors import BackendError, BundleError, ContextLengthError
from ..backend import DecoderCall, Residency, VisionGraph
from ..kv_cache import CAPACITY_STEP, KvCache
from .chain import Binding, Chain
from .choose import BUILDER_NAMES, ChosenSet, choose_set
from .decoder_call import DecoderSetup, SplitDecoderCall, TrtDecoderCall
from .device_cache import make_device_cache, read_layout
from .driver import Driver
from .engine import EngineLoader, open_engine
from .engine_set import ENGINE_SET_NAME, advise_rebuild, list_engines
from .limits import find_sides, limit_manifest, read_limits
from .memory import DeviceBlock, Scratch
from .step_graph import GraphPermit

_WITHOUT_ENGINES = (
    "for checks without engines, graphs of fp32 or fp16 run in ONNX Runtime with --provider cpu"
)


def open_engines(
    folder: Path,
    manifest: Manifest,
    *,
    residency: Residency = "all",
    guard: BundleGuard | None = None,
) -> TrtBackend:
    """The engines of a bundle that fit this machine; none is loaded yet.

    Raises:
        BackendError: no GPU, no TensorRT, or no engines for them: says how to build some.
        BundleError: all engine sets are damaged.
    """
    try:
        chosen, driver, loader = _find_engines(folder, manifest)
    except BackendError as error:
        raise BackendError(f"{error}; {_WITHOUT_ENGINES}") from error
    return TrtBackend(manifest, chosen, driver, loader, residency=residency, guard=guard)


def _find_engines(folder: Path, manifest: Manifest) -> tuple[ChosenSet, Driver, EngineLoader]:
    from .cuda_driver import CudaDriver
    from .tensorrt_engine import TensorRt, find_builders

    driver = CudaDriver()
    builders = find_builders()
    if not builders:
        raise BackendError(
            "TensorRT is not installed: it comes with JetPack; elsewhere pip install "
            "'vlmedge[tensorrt]'"
        )
    chosen = choose_set(folder, manifest, driver.gpu, builders)
    loader = TensorRt(
        chosen.engine_set.builder,
        stream_weights="weight_streaming" in chosen.engine_set.settings,
    )
    return chosen, driver, loader


class TrtBackend:
    """The engines of one set; see `Backend`."""

    def __init__(
        self,
        manifest: Manifest,
        chosen: ChosenSet,
        driver: Driver,
        loader: EngineLoader,
        *,
        residency: Residency = "all",
        guard: BundleGuard | None = None,
    ) -> None:
        """Take over what engines need; none is loaded yet.

        Args:
            manifest: of the bundle.
            chosen: the engine set.
            driver: the GPU.
            loader: of engines.
            residency: "all" keeps every graph that was needed, "one" the latest.
            guard: of the bundle's files; None: only the engines are looked after.

        Raises:
            BundleError: the bundle is of another flavor, or the set lacks a profile.
        """
        if manifest.target is None:
            raise BundleError(f"the bundle is of flavor {manifest.flavor}, engines need tensorrt")
        self._manifest = manifest
        self._mode: CacheMode = manifest.target.cache
        self._chosen = chosen
        self._driver = driver
        self._loader = loader
        self._residency = residency
        files = (engine.file for engine in list_engines(chosen.engine_set))
        engines = BundleGuard(chosen.folder, (ENGINE_SET_NAME, *files), "engine set")
        self._guards = (engines,) if guard is None else (guard, engines)
        self._stream = driver.make_stream()
        self._scratch = Scratch(driver, self._stream)
        # All that uses the stream holds the scratch memory, calls that outlive this object too.
        weakref.finalize(self._scratch, driver.destroy_stream, self._stream).atexit = False
        self._permit = GraphPermit()
        self._chains: dict[str, Chain] = {}
        self._load_s = 0.0
        self.limits = read_limits(chosen.engine_set, manifest)

    @property
    def manifest(self) -> Manifest:
        """The bundle's, its budget and context limited to what the engines take."""
        return limit_manifest(self._manifest, self.limits)

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs the engines, and on which GPU."""
        engine_set, gpu = self._chosen.engine_set, self._driver.gpu
        name = f"{BUILDER_NAMES[engine_set.builder]} {engine_set.version}"
        return (f"{name} on {gpu.name or 'GPU'}, sm {gpu.sm}",)

    @property
    def load_s(self) -> float:
        """Seconds spent loading graphs so far."""
        return self._load_s

    @property
    def notices(self) -> tuple[str, ...]:
        """What makes it slower than it could be, a line each."""
        return (*self._chosen.notices, *self._permit.notices)

    def encode_images(
        self,
        graph: VisionGraph,
        pixel_values: NDArray[np.uint8],
        position_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Run the ViT; see `Backend`.

        Args:
            graph: "vision" for pictures, "vision_video" for frame pairs.
            pixel_values: uint8[num_images, N, 588], of frame pairs uint8[num_images, N, 1176].
            position_ids: int64[num_images, N, 2].

        Returns:
            image_embeds: float32[num_images, N / 4, D].
        """
        num_images, num_patches = pixel_values.shape[:2]
        self._check_patches(graph, num_patches)
        chain = self.load(graph)
        num_tokens = num_patches // self._manifest.vision.spatial_merge_size**2
        hidden_size = self._manifest.decoder.hidden_size
        image_embeds = np.empty((num_images, num_tokens, hidden_size), np.float32)
        step = self.limits.images[graph]
        for start in range(0, num_images, step):
            some = slice(start, start + step)
            feed = {"pixel_values": pixel_values[some], "position_ids": position_ids[some]}
            self._encode(chain, feed, image_embeds[some])
        return image_embeds

    def make_cache(self, batch: int, capacity: int) -> KvCache:
        """Allocate an empty cache on the device, with the decoder loaded before it."""
        limits = self.limits
        if batch > limits.batch:
            raise BackendError(
                f"{batch} sequences together, the engines were built for at most {limits.batch}: "
                f"ask for fewer, or {self._rebuild('--max-batch', batch)}"
            )
        # What was rounded up may be rounded down again.
        if capacity >= limits.capacity + CAPACITY_STEP:
            option = f"export it again with --context {capacity}, then build it"
            if self._mode == "append":
                option = self._rebuild("--context", capacity)
            raise ContextLengthError(
                f"prompt and answer need {capacity} tokens, the engines were built for at most "
                f"{limits.capacity}: ask for fewer, or {option}"
            )
        self.load("decoder")
        layout = read_layout(self._manifest.graphs["decoder"])
        room = limits.capacity if self._mode == "in_place" else min(capacity, limits.capacity)
        return make_device_cache(self._driver, self._stream, layout, batch, room)

    def bind_decoder(
        self, cache: KvCache, num_tokens: int, *, row: int | None = None
    ) -> DecoderCall:
        """Prepare calls of one shape; see `Backend`."""
        chain = self.load("decoder")
        graph = self._manifest.graphs["decoder"]
        layout = read_layout(graph)
        capacity = find_sides(chain.records, "prefill", layout.names[0], 2)
        setup = DecoderSetup(
            driver=self._driver,
            stream=self._stream,
            chain=chain,
            graph=graph,
            layout=layout,
            mode=self._mode,
            min_capacity=capacity[0] if capacity else 1,
            max_prefill=self.limits.prefill,
            can_decode=all(
                any(profile.use == "decode" for profile in record.profiles)
                for record in chain.records
            ),
            permit=self._permit,
        )
        if num_tokens > self.limits.prefill:
            return SplitDecoderCall(setup, cache, num_tokens, row)
        return TrtDecoderCall(setup, cache, num_tokens, row)

    def load(self, graph: str) -> Chain:
        """The graph's engines, loaded now if need be.

        Raises:
            BundleError: an engine's file is missing or another than the recorded one, or the bundle
                or the engine set was replaced.
            BackendError: the set lacks the graph, or TensorRT refuses an engine.
        """
        if graph in self._chains:
            return self._chains[graph]
        engine_set = self._chosen.engine_set
        records = engine_set.chains.get(graph)
        if records is None:
            raise BackendError(
                f"engines in {self._chosen.folder} lack the {graph} graph: "
                f"{advise_rebuild(engine_set, '--video')}"
            )
        if self._residency == "one":
            self.close()
        start = time.perf_counter()
        for guard in self._guards:
            guard.check_same()  # of a replaced one the hashes would be wrong, too
        engines = [
            (record, open_engine(self._chosen.folder, record, self._loader, engine_set.command))
            for record in records
        ]
        chain = Chain(self._driver, self._stream, self._scratch, engines)
        self._chains[graph] = chain
        self._load_s += time.perf_counter() - start
        return chain

    def close(self) -> None:
        """Free all engines and what they compute in; a later call loads them again."""
        for chain in self._chains.values():
            chain.free()
        self._chains.clear()
        self._scratch.free()

    def _encode(
        self,
        chain: Chain,
        feed: dict[str, NDArray[np.uint8] | NDArray[np.int64]],
        image_embeds: NDArray[np.float32],
    ) -> None:
        """One run of the ViT, into `image_embeds`."""
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        blocks = {name: DeviceBlock(self._driver, array.nbytes) for name, array in arrays.items()}
        blocks["image_embeds"] = DeviceBlock(self._driver, image_embeds.nbytes)
        shapes = {name: array.shape for name, array in arrays.items()}
        shapes["image_embeds"] = image_embeds.shape
        addresses = {name: block.address for name, block in blocks.items()}
        for name, array in arrays.items():
            self._driver.copy_to_device(addresses[name], array, self._stream)
        chain.enqueue("vision", Binding(shapes, addresses))
        self._driver.copy_to_host(image_embeds, addresses["image_embeds"], self._stream)
        self._driver.synchronize(self._stream)

    def _check_patches(self, graph: str, num_patches: int) -> None:
        if graph not in self.limits.patches:
            return  # loading it says so
        least, most = self.limits.patches[graph]
        if least <= num_patches <= most:
            return
        area = self._manifest.vision.patch_size**2
        bound, wrong = ("max_pixels", "more") if num_patches > most else ("min_pixels", "fewer")
        limit = (most if num_patches > most else least) * area
        raise BackendError(
            f"a picture of {num_patches} patches ({num_patches * area} pixels) has {wrong} than "
            f"the engines were built for: ask with {bound}={limit}, or "
            f"{self._rebuild('--max-pixels', num_patches * area)}"
        )

    def _rebuild(self, option: str, value: int) -> str:
        return advise_rebuild(self._chosen.engine_set, f"{option} {value}")
