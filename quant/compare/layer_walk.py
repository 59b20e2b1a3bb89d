"""Look into the layers of a bundle, stage by stage; see `layer_rows.LayerTracer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.manifest_file import read_manifest
from ..graph.feeds import Prompt, make_decoder_feed, make_target_feed, make_vision_feeds
from ..graph.files import read_graph
from ..graph.folding import Fold, find_folds
from ..graph.layer_nodes import LayerNodes, find_layers, open_layer, read_matrix
from ..graph.linears import GraphWeights
from ..graph.stages import Tensors, Walk, keep_every_position
from .layer_rows import OnRows, OnStep, pick_rows

# Always float, and of another size in each of the two vision graphs
PATCHES = "visual.patch_embed.proj"


class LayeredBundle:
    """A bundle of any precision and its linear layers.

    Attributes:
        layers: by name, in the order they run.
        precisions: by name, as the manifest's coverage has them.
    """

    def __init__(self, bundle: str | Path, num_threads: int | None = None) -> None:
        """Read the graphs; their weights stay on disk.

        Raises:
            BundleError: the bundle is missing or damaged.
        """
        self.folder = Path(bundle)
        self.manifest: Manifest = read_manifest(self.folder)
        self._num_threads = num_threads or 0
        self._models = {name: self._read(name) for name in self.manifest.graphs}
        self._found = {
            graph: find_layers(model.graph, self._list_names(graph))
            for graph, model in self._models.items()
        }
        self.layers: dict[str, LayerNodes] = {**self._found["vision"], **self._found["decoder"]}
        self.precisions = {
            entry.name: entry.precision
            for entry in self.manifest.coverage
            if entry.name in self.layers
        }

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.absolute().name

    @property
    def models(self) -> Mapping[str, onnx.ModelProto]:
        """The graphs by name; the decoder gives logits of every position."""
        return self._models

    def find_in(self, graph: str) -> Mapping[str, LayerNodes]:
        """The layers of one graph: clips have a graph of their own with the same layers."""
        return self._found.get(graph, {})

    @property
    def num_steps(self) -> int:
        """How often `trace` reports a step, at most."""
        return sum(self.manifest.vision.depth + 2 for name in self._models if name != "decoder") + (
            self.manifest.decoder.num_layers + 2
        )

    def trace(
        self, prompts: Sequence[Prompt], layers: Sequence[str], on_rows: OnRows, on_step: OnStep
    ) -> None:
        """Take prompts through all graphs; see `layer_rows.LayerTracer`.

        Raises:
            BundleError: a value is not finite (it is named), or a stage that doesn't run.
        """
        wanted = set(layers)
        feeds = make_vision_feeds(prompts)
        embeds: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
        results: dict[int, NDArray[np.float32]] = {}
        for graph in self._models:
            numbers = [i for i, feed in enumerate(feeds) if feed.graph == graph]
            if not numbers:
                continue
            walk = self.make_walk(graph, [feeds[i].tensors for i in numbers])
            self._run(graph, walk, numbers, len(feeds), wanted, on_rows, on_step)
            results |= {i: live["image_embeds"] for i, live in zip(numbers, walk.live, strict=True)}
        for number, feed in enumerate(feeds):
            embeds[feed.prompt].append(results[number])
        table = Embeddings(self.folder, self.manifest.embedding)
        tensors = [
            make_decoder_feed(prompt, visual, table)
            for prompt, visual in zip(prompts, embeds, strict=True)
        ]
        if target := self.manifest.target:
            for feed in tensors:
                feed |= make_target_feed(target, feed["inputs_embeds"].shape[1])
        walk = self.make_walk("decoder", tensors)
        numbers = list(range(len(prompts)))
        self._run("decoder", walk, numbers, len(prompts), wanted, on_rows, on_step)

    def read_vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight, float32[channels]."""
        return GraphWeights(self.folder, self._model_of(name)).read(name)

    def read_matrix(self, layer: str) -> NDArray[np.float32]:
        """A layer's matrix float32[out, in], as its codes say it."""
        return read_matrix(self._model_of(layer), self.folder, self.layers[layer])

    def open_layer(self, layer: str) -> ort.InferenceSession:
        """A session of one layer alone."""
        graph = "vision" if layer in self._found["vision"] else "decoder"
        return open_layer(
            self._models[graph],
            self.folder,
            self.layers[layer],
            num_threads=self._num_threads,
            keep_qdq=self.manifest.graphs[graph].keep_qdq,
        )

    def find_folds(self) -> Mapping[str, Fold]:
        """Where scales of layers' inputs may have been folded."""
        vision, decoder = self.manifest.vision, self.manifest.decoder
        folds: dict[str, Fold] = {}
        for graph, heads, kv_heads in (
            ("vision", vision.num_heads, vision.num_heads),
            ("decoder", decoder.num_heads, decoder.num_kv_heads),
        ):
            linears = [layer.linear for layer in self._found[graph].values()]
            folds |= find_folds(self._models[graph].graph, linears, heads, kv_heads)
        return folds

    def close(self) -> None:
        """Nothing is held between calls."""

    def _read(self, graph: str) -> onnx.ModelProto:
        model = read_graph(self.folder, self.manifest, graph)
        return keep_every_position(model) if graph == "decoder" else model

    def _list_names(self, graph: str) -> list[str]:
        return [
            entry.name
            for entry in self.manifest.coverage
            if (entry.graph, entry.kind) == (graph, "linear") and entry.name != PATCHES
        ]

    def _model_of(self, name: str) -> onnx.ModelProto:
        return self._models["vision" if name.startswith("visual.") else "decoder"]

    def make_walk(self, graph: str, feeds: Sequence[Tensors]) -> Walk:
        """A walk through one graph, a feed an example; nothing is run yet."""
        return Walk(
            self._models[graph],
            self.folder,
            feeds,
            num_threads=self._num_threads,
            keep_qdq=self.manifest.graphs[graph].keep_qdq,
            keep_outputs=graph != "decoder",
        )

    def _run(
        self,
        graph: str,
        walk: Walk,
        numbers: Sequence[int],
        num_inputs: int,
        wanted: set[str],
        on_rows: OnRows,
        on_step: OnStep,
    ) -> None:
        for index, stage in enumerate(walk.stages):
            on_step(f"{self.name}: {stage.name}")
            here = [
                layer.linear
                for name, layer in self._found[graph].items()
                if name in wanted and layer.linear.stage == stage.name
            ]

            def tell(place: int, values: Tensors) -> None:
                for linear in here:  # noqa: B023 - called before the next stage
                    x = values[linear.input].reshape(-1, linear.in_features)
                    y = values[linear.output].reshape(-1, linear.out_features)
                    rows = pick_rows(len(x), num_inputs)
                    on_rows(linear.name, numbers[place], x[rows], y[rows])

            taps = dict.fromkeys(name for linear in here for name in (linear.input, linear.output))
            walk.run_stage(index, list(taps), tell)
