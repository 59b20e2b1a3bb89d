"""Find the largest value of every tensor of a bundle that computes in float16, by layer.

ONNX Runtime computes most float16 nodes in float32 on a CPU, so that a value over float16's range
passes comparisons there, and becomes infinity on the device. Here the graphs are run in float32
throughout, by their own weights, with the largest absolute value of each tensor that is float16 in
them as further outputs; nothing else is kept. So an overflow hides no other behind it. Attention
that is one node gives its scores as well, which a device may hold in float16 on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.backends.cache_mask import make_mask
from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import BundleError
from ..compare.findings import FLOAT16_LARGEST, RangeFinding
from ..data.examples import Example
from ..graph.feeds import make_decoder_feed, make_prompts, make_vision_feeds
from ..graph.files import read_graph
from ..graph.stages import StageOptions, Tensors, open_session

MAX_EXAMPLES = 4
MAX_NAMED = 5  # layers of one line
_PREFIX = "value_range/"
_FIRST = "value_range.first_axis"
_HALF, _FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


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
        Tensors of more than half the range and the largest of all, in the order they run.

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
            if not value <= largest.get((graph, name), (0.0, ""))[0]:
                largest[graph, name] = (value, example)

    for feed in make_vision_feeds(prompts):
        run = runs[feed.graph]
        rows, found = run(feed.tensors, "image_embeds")
        embeds[feed.prompt].append(rows.astype(np.float32))
        keep(feed.graph, prompts[feed.prompt].example, found)
    table = Embeddings(folder, manifest.embedding)
    for prompt, visual in zip(prompts, embeds, strict=True):
        feed = _make_feed(manifest, make_decoder_feed(prompt, visual, table))
        num_tokens = len(prompt.request.input_ids)
        feed["logit_index"] = np.arange(num_tokens - 1, num_tokens + len(prompt.answer_ids))
        _, found = runs["decoder"](feed, "logits")
        keep("decoder", prompt.example, found)
    order = sorted(runs, key=lambda graph: graph == "decoder")  # pictures first
    places = [(graph, name) for graph in order for name in runs[graph].tensors]
    findings = [
        RangeFinding(graph, *runs[graph].describe(name), *largest[graph, name])
        for graph, name in places
        if (graph, name) in largest
    ]
    return choose_findings(findings)


def choose_findings(findings: Sequence[RangeFinding]) -> tuple[RangeFinding, ...]:
    """What is worth keeping of all tensors, in their order: near the end, and the largest."""
    top = max(findings, key=lambda one: one.largest, default=None)
    return tuple(one for one in findings if one.overflows or one.is_near or one is top)


def describe_overflow(ranges: Sequence[RangeFinding]) -> str | None:
    """One line about what would be infinite on a device; None where nothing would."""
    over = [finding for finding in ranges if finding.overflows]
    if not over:
        return None
    layers = list(dict.fromkeys(finding.layer for finding in over))
    more = f" and {len(layers) - MAX_NAMED} more" if len(layers) > MAX_NAMED else ""
    worst = max(over, key=lambda finding: finding.largest)
    return (
        f"values over float16's {FLOAT16_LARGEST:g} in {', '.join(layers[:MAX_NAMED])}{more} "
        f"(largest {worst.largest:.4g}, {worst.tensor}, example {worst.example}): on a device they "
        "are infinite; use bf16"
    )


def describe_near(ranges: Sequence[RangeFinding]) -> str | None:
    """One line about what comes near float16's end; None where nothing does."""
    near = [finding for finding in ranges if finding.is_near]
    if not near:
        return None
    worst = max(near, key=lambda finding: finding.largest)
    return (
        f"values of {worst.largest:.4g} in {worst.layer} come near float16's "
        f"{FLOAT16_LARGEST:g}: try more pictures, or use bf16"
    )


class _Instrumented:
    """One graph with the largest absolute values of its float16 tensors as outputs."""

    def __init__(self, folder: Path, manifest: Manifest, name: str, num_threads: int) -> None:
        model = read_graph(folder, manifest, name)
        _pick_many(model)
        _show_scores(model)
        model = onnx.shape_inference.infer_shapes(model)
        self._nodes = {
            output: node.name for node in model.graph.node for output in node.output if output
        }
        types, masked = _find_types(model), _find_masked(model.graph)
        if unknown := [output for output in self._nodes if output not in types]:
            raise BundleError(f"{name} has {unknown[0]}, whose type ONNX can't tell")
        self.tensors = [
            output for output in self._nodes if types[output] == _HALF and output not in masked
        ]
        widen(model)
        for tensor in self.tensors:
            _add_largest(model, tensor)
        self._model = model
        keep_qdq = manifest.graphs[name].keep_qdq
        self._options = StageOptions(folder, num_threads, keep_qdq=keep_qdq)
        self._session = None

    def __call__(self, feed: Tensors, output: str) -> tuple[NDArray, dict[str, float]]:
        """Run; the named output, and tensor -> its largest absolute value."""
        if self._session is None:
            self._session = open_session(self._model, self._options)
        wanted = [output, *(f"{_PREFIX}{tensor}" for tensor in self.tensors)]
        taken = {value.name for value in self._session.get_inputs()}
        first, *values = self._session.run(
            wanted, {name: value for name, value in feed.items() if name in taken}
        )
        largest = np.array([np.asarray(value) for value in values], np.float32)
        largest[largest < 0] = np.nan  # of NaN alone
        found = dict(zip(self.tensors, largest.tolist(), strict=True))
        return np.asarray(first), found

    def describe(self, tensor: str) -> tuple[str, str]:
        """(layer, tensor): the node's name without what it does there, and the tensor's own."""
        node = self._nodes[tensor].removeprefix("/")
        return node.rpartition("/")[0].replace("/", ".") or node, tensor


def widen(model: onnx.ModelProto) -> None:
    """Make a graph that computes in float16 compute in float32, by the same weights.

    Weights stay as they are stored and are cast before they are used; the graph's float16 inputs
    and outputs become float32.
    """
    graph = model.graph
    del graph.value_info[:]
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == _HALF:
            wide = f"{tensor.name}/float32"
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [wide], wide, to=_FLOAT))
    names = {cast.input[0]: cast.output[0] for cast in casts}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", _HALF):
                attribute.i = _FLOAT
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FLOAT


def _pick_many(model: onnx.ModelProto) -> None:
    """Let `logit_index` name any rows of one prompt, not one of each prompt.

    The decoder picks the row whose logits are wanted before its last MLP. On a device that is the
    prompt's last token, and then every token of the answer; here they go through in one call.
    """
    make, nodes = onnx.helper.make_node, []
    for node in model.graph.node:
        if node.op_type != "GatherND":
            nodes.append(node)
            continue
        rows = f"{node.name}/rows"
        nodes.append(make("Gather", [node.input[0], "logit_index"], [rows], rows, axis=1))
        nodes.append(make("Squeeze", [rows, _FIRST], [node.output[0]], node.name))
    if len(nodes) > len(model.graph.node):
        first = onnx.numpy_helper.from_array(np.array([0], np.int64), _FIRST)
        model.graph.initializer.append(first)
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _show_scores(model: onnx.ModelProto) -> None:
    """Let every Attention give q k^T, scaled, as one more output: on a device it may be float16."""
    for node in model.graph.node:
        if node.op_type == "Attention":
            given = [*node.output, "", "", ""][:3]
            del node.output[:]
            node.output.extend([*given, f"{node.name}/scores"])


def _find_masked(graph: onnx.GraphProto) -> set[str]:
    """Masks, and scores with one added: far below on purpose, and -infinity would do as well."""
    masks = {output for node in graph.node if node.op_type == "Where" for output in node.output}
    sums = {
        output
        for node in graph.node
        if node.op_type == "Add" and masks.intersection(node.input)
        for output in node.output
    }
    return masks | sums


def _find_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of every value that ONNX's inference can tell."""
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _add_largest(model: onnx.ModelProto, tensor: str) -> None:
    """Append max |tensor| as an output."""
    make = onnx.helper.make_node
    name = f"{_PREFIX}{tensor}"
    absolute = make("Abs", [tensor], [f"{name}/abs"])
    largest = make("ReduceMax", [f"{name}/abs"], [name], keepdims=0)
    model.graph.node.extend([absolute, largest])
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, _FLOAT, []))


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
    empty = np.zeros((1, decoder.num_kv_heads, capacity, decoder.head_dim), np.float32)
    return dict(feed) | extra | dict(_list_cache(decoder.num_layers, empty))


def _list_cache(num_layers: int, empty: NDArray) -> Iterator[tuple[str, NDArray]]:
    for i in range(num_layers):
        for part in ("key", "value"):
            yield f"past_key_values.{i}.{part}", empty


def draw_examples(num_pictures: int = 2) -> tuple[Example, ...]:
    """Pictures of noise and of stripes with a question each, and a question alone, answered."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (168, 224, 3), np.uint8)
    diagonal = np.indices((224, 168)).sum(axis=0) // 7 % 2 * 255
    stripes = np.repeat(diagonal[..., None], 3, axis=2)
    told = ("I see stripes, noise and no word; it is about 42 dots wide.",)
    examples = [Example("text", ({"role": "user", "content": "What is written here?"},), told)]
    for name, levels in (("noise", noise), ("stripes", stripes.astype(np.uint8)))[:num_pictures]:
        part = {"type": "image", "image": np.ascontiguousarray(levels)}
        content = [part, {"type": "text", "text": "Describe this picture."}]
        examples.append(Example(f"drawn {name}", ({"role": "user", "content": content},), told))
    return tuple(examples)
