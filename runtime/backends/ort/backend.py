"""Run graphs in ONNX Runtime behind the protocol; only this file and `session.py` know onnxruntime.

Sessions are made when they are first needed; ONNX Runtime maps the weights' file into memory. Every
buffer of a decoder call is bound once and used again: per token, ONNX Runtime reads and writes our
memory and nothing goes through Python but the logits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.guard import BundleGuard
from ...bundle.manifest import MANIFEST_NAME, GraphSpec, Manifest
from ...errors import BackendError, BundleError
from ...telemetry import list_notices
from ...threads import check_num_threads, count_cpus
from ..backend import Residency, VisionGraph
from ..kv_cache import KvCache
from .session import (
    PROVIDERS,
    check_cache,
    check_target,
    choose_providers,
    name_dtype,
    open_session,
    ort,
)
from .target_call import OrtTargetCall

# What onnxruntime's errors mean here; every other one while loading is a damaged graph.
_ENGINE_ERRORS = ("NotImplemented", "EPFail", "RuntimeException")


class OrtBackend:
    """The graphs of one bundle in ONNX Runtime."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        providers: Sequence[str] | str | None = None,
        num_threads: int | None = None,
        residency: Residency = "all",
        guard: BundleGuard | None = None,
    ) -> None:
        """Choose where graphs run; none is loaded yet.

        Args:
            folder: of the bundle.
            manifest: its checked manifest.
            providers: "cpu", "cuda" or ONNX Runtime's own names, the preferred one first; None:
                CUDA where it is there, else the CPU.
            num_threads: of one operator; None: the cores this process may use.
            residency: "all" keeps every graph that was needed, "one" the latest: the lowest peak
                of memory, at the price of loading again.
            guard: of the files that the manifest speaks of; None: of those that are there now.

        Raises:
            BackendError: a provider that this onnxruntime doesn't have.
        """
        check_num_threads(num_threads)
        self._folder = folder
        self._manifest = manifest
        self._residency = residency
        self._is_provider_asked = providers is not None
        self._providers = choose_providers(providers)
        self._num_threads = num_threads or count_cpus()
        self._guard = guard or BundleGuard(folder, (MANIFEST_NAME, *manifest.files))
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._load_s = 0.0
        self._shrink = ort.RunOptions()
        if not self.is_cuda:
            # Vision and prefill need far more scratch memory than decoding: give it back.
            self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @property
    def manifest(self) -> Manifest:
        """The bundle's: ONNX Runtime takes what the graphs take."""
        return self._manifest

    @property
    def notices(self) -> tuple[str, ...]:
        """That ONNX Runtime may send telemetry, where a host has imported it before."""
        return list_notices()

    @property
    def providers(self) -> tuple[str, ...]:
        """Where graphs run, the preferred one first."""
        return self._providers

    @property
    def is_cuda(self) -> bool:
        """Whether the cache and the graphs live on a GPU."""
        return self._providers[0] == PROVIDERS["cuda"]

    @property
    def load_s(self) -> float:
        """Seconds spent loading graphs so far."""
        return self._load_s

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
        session = self.load(graph)
        feed = {"pixel_values": pixel_values, "position_ids": position_ids}
        try:
            (image_embeds,) = session.run(["image_embeds"], feed, self._shrink)
        except Exception as error:  # onnxruntime has no base class of its own
            raise BackendError(f"the {graph} graph failed: {error}") from error
        return np.asarray(image_embeds)

    def make_cache(self, batch: int, capacity: int) -> KvCache:
        """Allocate an empty cache where the decoder is; on a CPU pages come when written."""
        self.load("decoder")
        target = self._manifest.target
        if target is not None and target.capacity is not None:
            capacity = target.capacity  # the graph's own
        buffers: dict[str, Any] = {}
        num_bytes = 0
        for spec in self._manifest.graphs["decoder"].inputs:
            if not spec.name.startswith("past_key_values."):
                continue
            _, num_kv_heads, _, head_dim = spec.shape
            shape = (batch, int(num_kv_heads), capacity, int(head_dim))
            dtype = np.dtype(spec.dtype)
            num_bytes += int(np.prod(shape)) * dtype.itemsize
            try:
                if self.is_cuda:
                    buffers[spec.name] = ort.OrtValue.ortvalue_from_shape_and_type(
                        shape, dtype.type, "cuda", 0
                    )
                else:
                    buffers[spec.name] = np.zeros(shape, dtype)
            except Exception as error:  # MemoryError of numpy, RuntimeException of CUDA
                raise BackendError(
                    f"no memory for a cache of {batch} x {capacity} tokens: {error}"
                ) from error
        return KvCache(batch, capacity, buffers, num_bytes)

    def bind_decoder(
        self, cache: KvCache, num_tokens: int, *, row: int | None = None
    ) -> OrtDecoderCall | OrtTargetCall:
        """Prepare calls of one shape; see `Backend`."""
        session = self.load("decoder")
        graph, target = self._manifest.graphs["decoder"], self._manifest.target
        run_options = self._shrink if num_tokens > 1 else ort.RunOptions()
        if target is not None:
            return OrtTargetCall(session, graph, target, cache, num_tokens, row, run_options)
        return OrtDecoderCall(session, graph, cache, num_tokens, row, run_options, self.is_cuda)

    def load(self, graph: str) -> ort.InferenceSession:
        """The graph's session, made now if need be.

        Raises:
            BundleError: the bundle has no such graph or a damaged one, or was replaced.
            BackendError: this onnxruntime can't run it.
        """
        if graph in self._sessions:
            return self._sessions[graph]
        spec = self._manifest.graphs.get(graph)
        if spec is None:
            raise BundleError(f"the bundle has no {graph} graph: export it again")
        self._guard.check_same()
        check_cache(spec, self._providers[0])
        check_target(self._manifest.target, self._providers[0])
        if self._residency == "one":
            self._sessions.clear()
        start = time.perf_counter()
        path = self._folder / spec.file
        try:
            session = self._open(path, spec)
        except Exception as error:  # onnxruntime has no base class of its own
            if type(error).__name__ in _ENGINE_ERRORS:
                raise BackendError(f"onnxruntime {ort.__version__}: {path}: {error}") from error
            raise BundleError(f"{path} is damaged: {error}") from error
        self._guard.check_same()  # it may have been replaced while the graph was read
        self._check(graph, spec, session)
        self._sessions[graph] = session
        self._load_s += time.perf_counter() - start
        return session

    def close(self) -> None:
        """Free all graphs; a later call loads them again."""
        self._sessions.clear()

    def _open(self, path: Path, spec: GraphSpec) -> ort.InferenceSession:
        def open_on(providers: Sequence[str]) -> ort.InferenceSession:
            return open_session(path, providers, self._num_threads, keep_qdq=spec.keep_qdq)

        try:
            return open_on(self._providers)
        except Exception:
            if self._is_provider_asked or not self.is_cuda:
                raise
            # CUDA was only tried because it is there; a damaged file fails on the CPU again.
            self._providers = (PROVIDERS["cpu"],)
            return open_on(self._providers)

    def _check(self, graph: str, spec: GraphSpec, session: ort.InferenceSession) -> None:
        """The graph must be what the manifest says, and run where it was asked to."""
        nodes = (*session.get_inputs(), *session.get_outputs())
        got = {node.name: name_dtype(node.type) for node in nodes}
        needed = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
        if got != needed:
            name = min(set(got.items()) ^ set(needed.items()))[0]
            raise BundleError(
                f"{spec.file} has {name} as {got.get(name)}, the manifest as {needed.get(name)}: "
                "the file is another bundle's"
            )
        running = tuple(session.get_providers())
        if running[0] != self._providers[0]:
            if self._is_provider_asked:
                raise BackendError(
                    f"{self._providers[0]} could not be started for the {graph} graph, "
                    f"onnxruntime offers {', '.join(running)}: are its libraries installed?"
                )
            self._providers = running


class OrtDecoderCall:
    """A decoder call of fixed shape with all its buffers bound; see `DecoderCall`."""

    inputs_embeds: NDArray[np.floating]
    position_ids: NDArray[np.int64]
    seqlens_k: NDArray[np.int32]
    total_sequence_length: NDArray[np.int32]
    logit_index: NDArray[np.int64]

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: GraphSpec,
        cache: KvCache,
        num_tokens: int,
        row: int | None,
        run_options: ort.RunOptions,
        is_cuda: bool,
    ) -> None:
        """Make the buffers and bind them, past and present to the same memory."""
        self._session = session
        self._run_options = run_options
        self._cache = cache  # its memory is bound by address: keep it alive
        self._binding = session.io_binding()
        batch = cache.batch if row is None else 1
        sizes: dict[int | str, int] = {"batch": batch, "sequence": num_tokens}
        for spec in graph.inputs:
            if spec.name in cache.buffers:
                self._bind_cache(spec.name, row, is_cuda)
                continue
            shape = [sizes.get(size, size) for size in spec.shape]
            buffer = np.zeros(shape, spec.dtype)  # type: ignore[arg-type]
            setattr(self, spec.name, buffer)
            self._binding.bind_ortvalue_input(spec.name, ort.OrtValue.ortvalue_from_numpy(buffer))
        logits = next(spec for spec in graph.outputs if spec.name == "logits")
        self._logits = np.empty((batch, logits.shape[-1]), logits.dtype)  # type: ignore[arg-type]
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))

    def run(self) -> NDArray[np.floating]:
        """Logits float[B, V], in a buffer that the next run overwrites."""
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # onnxruntime has no base class of its own
            raise BackendError(f"the decoder graph failed: {error}") from error
        return self._logits

    def _bind_cache(self, name: str, row: int | None, is_cuda: bool) -> None:
        buffer = self._cache.buffers[name]
        if is_cuda:
            shape, address = buffer.shape(), buffer.data_ptr()
            dtype = np.dtype(name_dtype(buffer.data_type()))
        else:
            shape, address, dtype = buffer.shape, buffer.ctypes.data, buffer.dtype
        if row is not None:
            address += row * int(np.prod(shape[1:])) * dtype.itemsize
            shape = (1, *shape[1:])
        place = ("cuda" if is_cuda else "cpu", 0, dtype.type, list(shape), address)
        self._binding.bind_input(name, *place)
        self._binding.bind_output(name.replace("past_key_values.", "present."), *place)
