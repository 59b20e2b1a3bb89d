"""Quantize every layer of a float bundle by a plan, on prepared prompts.

    prompts - vision graphs, stage by stage -> image embeddings -> decoder, stage by stage
                     |  inputs of linear layers                        |
                     v                                                 v
               stage quantizer  ->  work folder: finished stages, from which a stopped run goes on

Only one stage's float weights are in memory at a time, so that memory grows with the size of a
layer, not with the number of layers. Activations stay those of the float model all the way: each
layer is judged for itself, and a calibration serves any recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import Manifest
from ..graph.feeds import VISION_GRAPHS, Prompt, make_decoder_feed, make_vision_feeds
from ..graph.files import read_graph
from ..graph.folding import find_folds
from ..graph.linears import GraphWeights
from ..graph.stages import Tensors, Walk, keep_every_position
from ..recipe.recipe import uses_moments
from ..rounding.activations import LayerInput
from .calibration import LayerCalibration
from .layer_error import LayerError
from .plan import LayerPlan, Plan
from .products import list_observed
from .stage_quantizer import StageQuantizer, StageResult
from .work_folder import WorkFolder

# (stages done, stages in all, what is worked on)
Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class QuantizedModel:
    """Everything that goes into the bundle.

    Attributes:
        stages: of each graph by name, "visual.blocks.0".
        resumed: stages that an earlier run had finished.
    """

    plan: Plan
    stages: dict[str, dict[str, StageResult]] = field(default_factory=dict)
    resumed: int = 0

    @property
    def calibration(self) -> dict[str, LayerCalibration]:
        """Of every layer that was calibrated, in the order they run."""
        return {name: c for stage in self._all() for name, c in stage.calibration.items()}

    @property
    def errors(self) -> dict[str, LayerError]:
        """Of every layer whose input was seen."""
        return {name: error for stage in self._all() for name, error in stage.errors.items()}

    def _all(self) -> list[StageResult]:
        return [stage for graph in self.stages.values() for stage in graph.values()]


class ModelQuantizer:
    """One quantization on its way through the graphs."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        plan: Plan,
        *,
        prompts: Sequence[Prompt] = (),
        known: Mapping[str, LayerCalibration] | None = None,
        work: WorkFolder,
        num_threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Bring together what a run needs; nothing is computed yet.

        Args:
            folder: of the float bundle.
            manifest: its manifest.
            plan: what becomes of each layer.
            prompts: to calibrate with; empty: from `known`, or a plan that needs nothing.
            known: calibration of an earlier run.
            work: where finished stages are.
            num_threads: of one operator; 0: all cores.
            progress: called before each stage.
        """
        self._folder, self._manifest, self._plan = folder, manifest, plan
        self._prompts, self._known, self._work = prompts, known or {}, work
        self._num_threads, self._progress = num_threads, progress
        self._result = QuantizedModel(plan)
        self._done = 0
        vision, decoder = manifest.vision.depth, manifest.decoder.num_layers
        self._total = vision + decoder + 4  # and what stands before and behind the layers

    def run(self) -> QuantizedModel:
        """Quantize both graphs.

        Raises:
            ValueError: names a layer whose values can't be quantized.
            BundleError: a graph that doesn't run.
            OSError: the disk is full.
        """
        embeds = self._run_vision()
        self._run_decoder(embeds)
        return self._result

    def _run_vision(self) -> list[list[NDArray[np.float32]]]:
        """Both vision graphs side by side; of each prompt its pictures' embeddings."""
        feeds = make_vision_feeds(self._prompts)
        models = {
            name: read_graph(self._folder, self._manifest, name)
            for name in VISION_GRAPHS.values()
            if name in self._manifest.graphs
        }
        walks = {
            name: self._make_walk(model, [f.tensors for f in feeds if f.graph == name])
            for name, model in models.items()
        }
        heads = self._manifest.vision.num_heads
        self._run_stages("vision", models["vision"], list(walks.values()), heads, heads)
        results = {
            name: iter([live["image_embeds"] for live in walk.live]) for name, walk in walks.items()
        }
        embeds: list[list[NDArray[np.float32]]] = [[] for _ in self._prompts]
        for feed in feeds:
            embeds[feed.prompt].append(next(results[feed.graph]))
        return embeds

    def _run_decoder(self, embeds: Sequence[Sequence[NDArray[np.float32]]]) -> None:
        table = Embeddings(self._folder, self._manifest.embedding)
        feeds = [
            make_decoder_feed(prompt, visual, table)
            for prompt, visual in zip(self._prompts, embeds, strict=True)
        ]
        model = keep_every_position(read_graph(self._folder, self._manifest, "decoder"))
        spec = self._manifest.decoder
        walk = self._make_walk(model, feeds, keep_outputs=False)
        self._run_stages("decoder", model, [walk], spec.num_heads, spec.num_kv_heads)

    def _make_walk(
        self, model: onnx.ModelProto, feeds: Sequence[Tensors], *, keep_outputs: bool = True
    ) -> Walk:
        return Walk(
            model,
            self._folder,
            feeds,
            num_threads=self._num_threads,
            keep_qdq=any(spec.keep_qdq for spec in self._manifest.graphs.values()),
            keep_outputs=keep_outputs,
        )

    def _run_stages(
        self,
        graph: str,
        model: onnx.ModelProto,
        walks: Sequence[Walk],
        num_heads: int,
        num_kv_heads: int,
    ) -> None:
        """Take walks of one model's graphs through all stages, quantizing each as it passes."""
        plans = self._plan.of_graph(graph)
        linears = [plan.linear for plan in plans]
        folds = find_folds(model.graph, linears, num_heads, num_kv_heads)
        quantizer = StageQuantizer(GraphWeights(self._folder, model), folds)
        observed = list_observed(model.graph, self._plan.recipe)
        self._result.stages[graph] = {}
        for index, stage in enumerate(walks[0].stages):
            if self._progress is not None:
                self._progress(self._done, self._total, stage.name)
            self._done += 1
            members = [plan for plan in plans if plan.linear.stage == stage.name]
            key = f"{graph}.{stage.name}"  # both graphs have a stage behind their layers
            if members and self._work.has(key):
                for walk in walks:
                    walk.run_stage(index)
                by_name = {plan.linear.name: plan for plan in members}
                self._result.stages[graph][stage.name] = self._work.load(key, by_name, is_old=True)
                self._result.resumed += 1
                continue
            taps = {p.linear.name: p.linear.input for p in members if p.recipe.format != "float"}
            extra = observed.get(stage.name, {})
            inputs = self._observe(walks, index, members, taps | extra)
            if not members:
                continue
            seen = {name: found for name, found in inputs.items() if name in taps}
            result = quantizer.quantize(members, seen, self._known)
            for name in extra:
                result.calibration[name] = self._find_observed(name, inputs)
            self._work.save(key, result)
            self._result.stages[graph][stage.name] = self._work.load(
                key, {plan.linear.name: plan for plan in members}
            )

    def _observe(
        self,
        walks: Sequence[Walk],
        index: int,
        members: Sequence[LayerPlan],
        taps: Mapping[str, str],
    ) -> dict[str, LayerInput]:
        """Run one stage and keep what calibration needs of the tapped values, by name."""
        inputs: dict[str, LayerInput] = {}
        num_inputs = sum(len(walk.live) for walk in walks)
        with_moments = {p.linear.name for p in members if uses_moments(p.recipe.method)}

        def keep(_: int, values: Tensors) -> None:
            for name, value in taps.items():
                rows = values[value].reshape(-1, values[value].shape[-1])
                if name not in inputs:
                    inputs[name] = LayerInput(
                        rows.shape[1], num_inputs, with_moments=name in with_moments
                    )
                try:
                    inputs[name].update(rows)
                except ValueError as error:
                    raise ValueError(f"layer {name}: {error}") from error

        for walk in walks:
            walk.run_stage(index, list(dict.fromkeys(taps.values())), keep)
        return inputs

    def _find_observed(self, name: str, inputs: Mapping[str, LayerInput]) -> LayerCalibration:
        if name in inputs:
            return LayerCalibration(inputs[name].stats)
        if name in self._known:
            return self._known[name]
        raise ValueError(f"{name} needs calibration: give --data")
