"""A bundle that computes in float16 + prompts -> the largest value of every tensor, by layer.

ONNX Runtime computes float16 nodes in float32 on a CPU, so that a value over float16's range passes
every comparison there, and becomes infinity on the device. The graphs are run once with the largest
absolute value of each float16 tensor as further outputs; nothing else of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.cache_mask import make_mask
from ..runtime.embeddings import Embeddings
from ..runtime.manifest import Manifest
from .examples import Example
from .feeds import make_decoder_feed, make_prompts, make_vision_feeds
from .findings import RangeFinding
from .graph_files import read_graph
from .stages import Tensors, make_options, open_session

FLOAT16_LARGEST = 65504.0
# Real pictures and questions differ from those that were tried: what comes within a factor of two
# of the end is told of
NEAR = FLOAT16_LARGEST / 2
MAX_EXAMPLES = 4
_PREFIX = "value_range/"


def computes_in_float16(manifest: Manifest) -> bool:
    """Whether a bundle's graphs hold float16 between their nodes."""
    return manifest.target is not None and manifest.target.dtype == "float16"


def measure_ranges(
    folder: Path, manifest: Manifest, examples: Sequence[Example], *, num_threads: int = 0
) -> tuple[RangeFinding, ...]:
    """Run every graph that the examples need, and find where values come near float16's end.

    Args:
        folder: of a bundle for a target of dtype float16.
        manifest: its manifest.
        examples: pictures and questions; each is run whole, in one call.
        num_threads: of one operator; 0: all cores.

    Returns:
        Tensors of more than half the range, the largest first; empty where all are well within.

    Raises:
        BundleError: a damaged graph.
        ValueError: an example that doesn't fit the model.
    """
    prompts = make_prompts(folder, manifest, examples)
    largest: dict[tuple[str, str], tuple[float, str]] = {}
    embeds: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    runs = {name: _Instrumented(folder, manifest, name, num_threads) for name in manifest.graphs}

    def keep(graph: str, example: str, found: dict[str, float]) -> None:
        for name, value in found.items():
            if value > largest.get((graph, name), (0.0, ""))[0]:
                largest[graph, name] = (value, example)

    for feed in make_vision_feeds(prompts):
        run = runs[feed.graph]
        rows, found = run(feed.tensors, "image_embeds")
        embeds[feed.prompt].append(rows.astype(np.float32))
        keep(feed.graph, prompts[feed.prompt].example, found)
    table = Embeddings(folder, manifest.embedding)
    for prompt, visual in zip(prompts, embeds, strict=True):
        feed = _make_feed(manifest, make_decoder_feed(prompt, visual, table))
        _, found = runs["decoder"](feed, "logits")
        keep("decoder", prompt.example, found)
    findings = [
        RangeFinding(graph, *runs[graph].describe(name), value, example)
        for (graph, name), (value, example) in largest.items()
        if value > NEAR
    ]
    return tuple(sorted(findings, key=lambda finding: -finding.largest))


def describe_overflow(ranges: Sequence[RangeFinding]) -> str | None:
    """One line about what would be infinite on a device; None where nothing would."""
    over = [finding for finding in ranges if finding.overflows]
    if not over:
        return None
    layers = list(dict.fromkeys(finding.layer for finding in over))
    named = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
    return (
        f"values over float16's {FLOAT16_LARGEST:g} in {named} (largest {over[0].largest:.4g}, "
        f"{over[0].tensor}, example {over[0].example}): on a device they are infinite; use bf16"
    )


def describe_near(ranges: Sequence[RangeFinding]) -> str | None:
    """One line about what comes near float16's end; None where nothing does."""
    near = [finding for finding in ranges if not finding.overflows]
    if not near:
        return None
    return (
        f"values of {near[0].largest:.4g} in {near[0].layer} come near float16's "
        f"{FLOAT16_LARGEST:g}: try more pictures, or use bf16"
    )


class _Instrumented:
    """One graph with the largest absolute values of its float16 tensors as outputs."""

    def __init__(self, folder: Path, manifest: Manifest, name: str, num_threads: int) -> None:
        model = onnx.shape_inference.infer_shapes(read_graph(folder, manifest, name))
        self._nodes = {
            output: node.name for node in model.graph.node for output in node.output if output
        }
        types = _find_types(model)
        self._tensors = [
            output for output in self._nodes if types.get(output) == onnx.TensorProto.FLOAT16
        ]
        for tensor in self._tensors:
            _add_largest(model, tensor)
        self._model = model
        self._options = make_options(folder, num_threads)
        self._session = None

    def __call__(self, feed: Tensors, output: str) -> tuple[NDArray, dict[str, float]]:
        """Run; the named output, and tensor -> its largest absolute value."""
        if self._session is None:
            self._session = open_session(self._model, self._options)
        wanted = [output, *(f"{_PREFIX}{tensor}" for tensor in self._tensors)]
        taken = {value.name for value in self._session.get_inputs()}
        first, *values = self._session.run(
            wanted, {name: value for name, value in feed.items() if name in taken}
        )
        largest = np.array([np.asarray(value) for value in values], np.float32)
        largest[np.isnan(largest)] = np.inf
        found = dict(zip(self._tensors, largest.tolist(), strict=True))
        return np.asarray(first), found

    def describe(self, tensor: str) -> tuple[str, str]:
        """(layer, tensor): the node's name without what it does there, and the tensor's own."""
        node = self._nodes[tensor].removeprefix("/")
        return node.rpartition("/")[0].replace("/", ".") or node, tensor


def _find_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of every value that ONNX's inference can tell."""
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _add_largest(model: onnx.ModelProto, tensor: str) -> None:
    """Append max |tensor| in float32 as an output."""
    make = onnx.helper.make_node
    name = f"{_PREFIX}{tensor}"
    model.graph.node.extend(
        [
            make("Cast", [tensor], [f"{name}/float"], to=onnx.TensorProto.FLOAT),
            make("Abs", [f"{name}/float"], [f"{name}/abs"]),
            make("ReduceMax", [f"{name}/abs"], [name], keepdims=0),
        ]
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))


def _make_feed(manifest: Manifest, feed: Tensors) -> Tensors:
    """A prompt in one call over an empty cache, as the target's graph asks for it."""
    target, decoder = manifest.target, manifest.decoder
    assert target is not None  # of a bundle that computes in float16
    count = feed["inputs_embeds"].shape[1]
    capacity = target.capacity or count
    starts = np.zeros(1, np.int64)
    extra = {
        "attention_mask": make_mask(starts, count, capacity, target.cache),
        "write_indices": starts,
    }
    empty = np.zeros((1, decoder.num_kv_heads, capacity, decoder.head_dim), np.float16)
    return dict(feed) | extra | dict(_list_cache(decoder.num_layers, empty))


def _list_cache(num_layers: int, empty: NDArray) -> Iterator[tuple[str, NDArray]]:
    for i in range(num_layers):
        for part in ("key", "value"):
            yield f"past_key_values.{i}.{part}", empty


def draw_examples(num_pictures: int = 2) -> tuple[Example, ...]:
    """Pictures of noise and of stripes with a question each, and a question alone."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (168, 224, 3), np.uint8)
    diagonal = np.indices((224, 168)).sum(axis=0) // 7 % 2 * 255
    stripes = np.repeat(diagonal[..., None], 3, axis=2)
    examples = [Example("text", ({"role": "user", "content": "What is written here?"},))]
    for name, levels in (("noise", noise), ("stripes", stripes.astype(np.uint8)))[:num_pictures]:
        part = {"type": "image", "image": np.ascontiguousarray(levels)}
        content = [part, {"type": "text", "text": "Describe this picture."}]
        examples.append(Example(f"drawn {name}", ({"role": "user", "content": content},)))
    return tuple(examples)
