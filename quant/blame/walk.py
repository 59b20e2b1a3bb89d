"""Run a bundle with some layers given back to the reference, on pictures and known answers.

A layer is given back by putting the reference's nodes in its place, between two multiplications
that undo the scales which the bundle's neighbours have taken in (gauges.py). Everything else, the
attention, the norms, the layers that are kept, stays the bundle's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor

from ...runtime.bundle.embeddings import Embeddings
from ..compare.gauges import Gauge
from ..compare.layer_walk import LayeredBundle
from ..compare.observe import find_merger_inputs
from ..graph.feeds import Prompt, make_decoder_feed, make_target_feed, make_vision_feeds
from ..graph.layer_nodes import LayerNodes
from ..graph.stages import Change, Tensors

LOGITS = "logits"
_PREFIX = "given_back/"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one walk made.

    Attributes:
        before_merger: float32[N, C] of every picture and clip.
        image_embeds: float32[M, D] of the same.
        logits: float32[P, V] of every prompt, before each token of its answer; empty if the
            decoder was not run.
    """

    before_merger: list[NDArray[np.float32]] = field(default_factory=list)
    image_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)


class BlameWalk:
    """Walks of one bundle over the same prompts, with any choice of layers given back."""

    def __init__(
        self,
        ours: LayeredBundle,
        reference: LayeredBundle,
        gauges: Mapping[str, Gauge],
        prompts: Sequence[Prompt],
        *,
        with_decoder: bool,
        on_step: Callable[[str], None],
    ) -> None:
        """Nothing runs yet.

        Args:
            ours: the bundle.
            reference: of the same model, any precision.
            gauges: between the two.
            prompts: with the answers along which logits are compared.
            with_decoder: whether logits are asked for.
            on_step: told of every stage.
        """
        self._ours, self._reference, self._gauges = ours, reference, gauges
        self._prompts, self._feeds = prompts, make_vision_feeds(prompts)
        self._with_decoder, self._on_step = with_decoder, on_step
        self._known_vision: dict[frozenset[str], Seen] = {}

    def run_reference(self) -> Seen:
        """The reference itself."""
        return self._run(self._reference, frozenset())

    def run(self, given_back: Collection[str]) -> Seen:
        """The bundle with the reference's layers in some places."""
        return self._run(self._ours, frozenset(given_back))

    def _run(self, bundle: LayeredBundle, given_back: frozenset[str]) -> Seen:
        vision = frozenset(name for name in given_back if name.startswith("visual."))
        is_ours = bundle is self._ours
        if is_ours and vision in self._known_vision:
            seen = self._known_vision[vision]
        else:
            seen = self._run_vision(bundle, vision)
            if is_ours and not vision:  # every trial of the decoder begins with it
                self._known_vision[vision] = seen
        if not self._with_decoder:
            return seen
        logits = self._run_decoder(bundle, seen.image_embeds, given_back - vision)
        return Seen(seen.before_merger, seen.image_embeds, logits)

    def _run_vision(self, bundle: LayeredBundle, given_back: frozenset[str]) -> Seen:
        before: dict[int, NDArray[np.float32]] = {}
        embeds: dict[int, NDArray[np.float32]] = {}
        for graph, model in bundle.models.items():
            numbers = [i for i, feed in enumerate(self._feeds) if feed.graph == graph]
            if graph == "decoder" or not numbers:
                continue
            taps = find_merger_inputs(model.graph)
            walk = bundle.make_walk(graph, [self._feeds[i].tensors for i in numbers])

            def tell(place: int, values: Tensors) -> None:
                before[numbers[place]] = values[taps[0]] + values[taps[1]]  # noqa: B023

            for index, stage in enumerate(walk.stages):
                self._on_step(stage.name)
                change = self._change(bundle, graph, stage.name, given_back)
                is_last = index == len(walk.stages) - 1
                walk.run_stage(index, taps if is_last else (), tell if is_last else None, change)
            embeds |= {i: live["image_embeds"] for i, live in zip(numbers, walk.live, strict=True)}
        order = range(len(self._feeds))
        return Seen([before[i] for i in order], [embeds[i] for i in order])

    def _run_decoder(
        self,
        bundle: LayeredBundle,
        embeds: Sequence[NDArray[np.float32]],
        given_back: frozenset[str],
    ) -> list[NDArray[np.float32]]:
        mine: list[list[NDArray[np.float32]]] = [[] for _ in self._prompts]
        for feed, rows in zip(self._feeds, embeds, strict=True):
            mine[feed.prompt].append(rows)
        table = Embeddings(bundle.folder, bundle.manifest.embedding)
        tensors = [
            make_decoder_feed(prompt, visual, table)
            for prompt, visual in zip(self._prompts, mine, strict=True)
        ]
        if target := bundle.manifest.target:
            for feed in tensors:
                feed |= make_target_feed(target, feed["inputs_embeds"].shape[1])
        walk = bundle.make_walk("decoder", tensors)
        logits: dict[int, NDArray[np.float32]] = {}

        def keep(number: int, values: Tensors) -> None:
            prompt = self._prompts[number]
            first = len(prompt.request.input_ids) - 1
            rows = values[LOGITS].reshape(-1, values[LOGITS].shape[-1])
            logits[number] = rows[first : first + max(1, len(prompt.answer_ids))].copy()

        for index, stage in enumerate(walk.stages):
            self._on_step(stage.name)
            change = self._change(bundle, "decoder", stage.name, given_back)
            is_last = index == len(walk.stages) - 1
            walk.run_stage(index, [LOGITS] if is_last else (), keep if is_last else None, change)
        return [logits[number] for number in range(len(self._prompts))]

    def _change(
        self, bundle: LayeredBundle, graph: str, stage: str, given_back: frozenset[str]
    ) -> Change | None:
        found, known = bundle.find_in(graph), self._reference.find_in(graph)
        here = [
            name
            for name in found
            if name in given_back and name in known and found[name].linear.stage == stage
        ]
        if not here:
            return None

        def apply(model: onnx.ModelProto) -> onnx.ModelProto:
            for name in here:
                _give_back(
                    model,
                    {bundle.models[graph].graph.node[i].name for i in found[name].nodes},
                    found[name],
                    self._reference.models[graph],
                    known[name],
                    self._reference.folder,
                    self._gauges[name],
                )
            return model

        return apply


def _give_back(
    model: onnx.ModelProto,
    nodes: Collection[str],
    ours: LayerNodes,
    reference: onnx.ModelProto,
    theirs: LayerNodes,
    folder: Path,
    gauge: Gauge,
) -> None:
    """Replace a layer's nodes, by name, in the model of a stage."""
    prefix = f"{_PREFIX}{theirs.linear.name}/"
    graph, source = model.graph, reference.graph
    x, y = f"{prefix}x", f"{prefix}y"
    names = {theirs.linear.input: x, theirs.linear.output: y}
    members = [source.node[i] for i in theirs.nodes]
    used = {value for node in members for value in node.input}
    placed = [_multiply(ours.linear.input, f"{prefix}input_gauge", x)]
    for node in members:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        for values in (copy.input, copy.output):
            values[:] = [names.get(v, f"{prefix}{v}" if v else "") for v in values]
        placed.append(copy)
    placed.append(_multiply(y, f"{prefix}output_gauge", ours.linear.output))
    for tensor in source.initializer:
        if tensor.name in used:
            copied = onnx.TensorProto()
            copied.CopyFrom(tensor)
            if copied.data_location == onnx.TensorProto.EXTERNAL:
                load_external_data_for_tensor(copied, str(folder))
                copied.data_location = onnx.TensorProto.DEFAULT
                del copied.external_data[:]
            copied.name = prefix + tensor.name
            graph.initializer.append(copied)
    for name, values in (("input_gauge", gauge.input), ("output_gauge", 1 / gauge.output)):
        tensor = onnx.numpy_helper.from_array(values.astype(np.float32), prefix + name)
        graph.initializer.append(tensor)
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name not in nodes:
            kept.append(node)
        elif placed:
            kept += placed
            placed = []
    del graph.node[:]
    graph.node.extend(kept)
    domains = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(e for e in reference.opset_import if e.domain not in domains)


def _multiply(value: str, factors: str, out: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Mul", [value, factors], [out], f"{out}/Mul")
