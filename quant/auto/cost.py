"""Price a layer in a format: bytes, or measured milliseconds of a typical request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort

from ...runtime.bundle.manifest import Manifest
from ..graph.feeds import Prompt
from ..graph.linears import Linear
from ..graph.stages import StageOptions, open_session
from ..quantize.bundle import TABLE
from ..quantize.linear_nodes import Placed, place
from ..quantize.plan import LM_HEAD
from ..sensitivity.mixer import Mixer

Cost = Literal["bits", "ms"]

CACHE_TOKENS = 2048  # that a KV cache's bytes are counted for
DECODED_TOKENS = 32  # of a typical answer: layers of the decoder run on one row so often
NUM_RUNS = 5
MAX_ROWS = 4096  # that a layer is timed on


class Costs:
    """Of one model's layers."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        mixer: Mixer,
        prompts: Sequence[Prompt],
        kind: Cost,
        num_threads: int = 0,
    ) -> None:
        """Nothing is measured yet.

        Args:
            folder: of the float bundle.
            manifest: its manifest.
            mixer: with the layers in their formats.
            prompts: typical ones.
            kind: "bits" of the bundle (and of a cache), or "ms".
            num_threads: that layers are timed with; 0: all cores.
        """
        self._folder, self._manifest, self._mixer, self._kind = folder, manifest, mixer, kind
        self._num_threads = num_threads
        self._known: dict[tuple[str, str], float] = {}
        num = max(1, len(prompts))
        visuals = [visual for prompt in prompts for visual in prompt.request.visuals]
        num_patches = sum(int(np.prod(visual.position_ids.shape[:-1])) for visual in visuals)
        self._num_patches = max(1, num_patches // num)
        self._num_tokens = max(1, sum(len(prompt.request.input_ids) for prompt in prompts) // num)
        self._dtypes = {
            tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            for model in mixer.models.values()
            for tensor in model.graph.initializer
        }

    def of(self, layer: str, format: str) -> float:
        """Bytes or milliseconds; what is no linear layer is not timed."""
        key = (layer, format)
        if key not in self._known:
            measure = self._count_bytes if self._kind == "bits" else self._measure_ms
            self._known[key] = measure(layer, format)
        return self._known[key]

    def _count_bytes(self, layer: str, format: str) -> float:
        decoder = self._manifest.decoder
        if linear := self._mixer.linears.get(layer):
            if format == "float":
                item = self._dtypes[linear.weight].itemsize
                return float(item * linear.out_features * linear.in_features)
            quantized = self._mixer.find(layer, format).quantized
            return float(quantized.codes.nbytes + quantized.scales.nbytes)
        if layer == TABLE:
            item = {"float": 4, "lm_head": 0}.get(format, 1)
            return float(item * decoder.vocab_size * decoder.hidden_size)
        if layer.endswith(".cache"):
            item = 4 if format == "float" else 1
            return 2.0 * item * CACHE_TOKENS * decoder.num_kv_heads * decoder.head_dim
        return 0.0

    def _measure_ms(self, layer: str, format: str) -> float:
        linear = self._mixer.linears.get(layer)
        if linear is None:
            return 0.0
        session = self._open(linear, format)
        if not layer.startswith("visual."):
            once = 0.0 if layer == LM_HEAD else self._time(session, linear, self._num_tokens)
            return once + DECODED_TOKENS * self._time(session, linear, 1)
        num_rows = self._num_patches
        if layer.startswith("visual.merger."):
            num_rows //= self._manifest.vision.spatial_merge_size**2
        return self._time(session, linear, max(1, num_rows))

    def _time(self, session: ort.InferenceSession, linear: Linear, num_rows: int) -> float:
        """Median of some runs, ms, after one that warms up."""
        rows = min(num_rows, MAX_ROWS)
        x = np.random.default_rng(0).standard_normal((rows, linear.in_features), np.float32)
        times = []
        for _ in range(NUM_RUNS + 1):
            start = time.perf_counter()
            session.run(None, {linear.input: x})
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:])) * 1000 * num_rows / rows

    def _open(self, linear: Linear, format: str) -> ort.InferenceSession:
        """A session of the layer alone."""
        if format == "float":
            placed = _place_float(linear, self._mixer)
        else:
            placed = place(linear, self._mixer.find(linear.name, format).quantized)
        sizes = ((linear.input, linear.in_features), (linear.output, linear.out_features))
        x, y = (
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, size])
            for name, size in sizes
        )
        tensors = [
            onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in placed.tensors.items()
        ]
        source = self._mixer.models["decoder"]
        model = onnx.helper.make_model(
            onnx.helper.make_graph(placed.nodes, linear.name, [x], [y], tensors),
            opset_imports=source.opset_import,
            ir_version=source.ir_version,
        )
        options = StageOptions(self._folder, self._num_threads, keep_qdq=format == "fp8")
        return open_session(model, options)


def _place_float(linear: Linear, mixer: Mixer) -> Placed:
    names = [linear.input, linear.weight]
    node = onnx.helper.make_node("Gemm", names, [linear.output], linear.node, transB=1)
    return Placed([node], {linear.weight: mixer.read_weight(linear.name)})
