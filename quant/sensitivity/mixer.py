"""Compose stages of layers that were quantized once, in any choice of formats.

A migration divides a layer's input and so changes the rows of the layer, or the norm, that makes
it. Rows have their own scales: divided by s they keep their codes, and only the scales change. So
what a layer is rounded to doesn't depend on what becomes of the others, and each one has to be
quantized once for each of its formats, whatever is tried with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Manifest
from ..graph.files import read_graph
from ..graph.folding import Fold, find_folds
from ..graph.linears import GraphWeights, Linear, list_carried, list_linears
from ..graph.stages import Change, name_stage
from ..quantize.calibration import LayerCalibration
from ..quantize.fp8_attention import make_attention_nodes
from ..quantize.int8_cache import make_cache_nodes
from ..quantize.linear_nodes import Placed, QuantizedLinear, place
from ..quantize.model_quantizer import QuantizedModel
from ..quantize.rewrite import rewrite
from ..quantize.stage_quantizer import StageResult

PARTS = ("vision", "decoder")
# Layer -> the format it has; those that are left out are float.
Choice = Mapping[str, str]
# Rows of a layer, and what each is divided by
Divisor = tuple[slice, NDArray[np.float32]]
_PAST = {3: "key", 4: "value"}  # inputs of GroupQueryAttention


@dataclass(frozen=True, slots=True)
class LoneLayer:
    """A linear layer quantized as if it were the only one.

    Attributes:
        quantized: undivided by what others have moved into its rows.
        scales: float32[K], what its input is divided by; None: nothing.
        error: relative error of its output by itself; None: its input was not seen.
    """

    quantized: QuantizedLinear
    scales: NDArray[np.float32] | None
    error: float | None


def separate(stage: StageResult, folds: Mapping[str, Fold]) -> dict[str, LoneLayer]:
    """The layers of a stage, each without what the others have moved into it."""
    multipliers = _list_divisors(stage.scales, folds)
    return {
        name: LoneLayer(
            _scale_rows(quantized, multipliers.get(name), undo=True),
            stage.scales.get(name),
            stage.errors[name].chosen if name in stage.errors else None,
        )
        for name, quantized in stage.linears.items()
    }


class Mixer:
    """A float bundle whose layers are quantized in any choice.

    Attributes:
        models: "vision" and "decoder", the float graphs.
        linears: by name, in the order they run.
        observed: calibration of what attention multiplies and caches.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Read the float graphs; their weights stay on the disk.

        Raises:
            BundleError: the bundle is quantized already, or damaged.
        """
        self.models = {part: read_graph(folder, manifest, part) for part in PARTS}
        self.linears: dict[str, Linear] = {}
        self._heads = {
            "vision": (manifest.vision.num_heads, manifest.vision.num_heads),
            "decoder": (manifest.decoder.num_heads, manifest.decoder.num_kv_heads),
        }
        self._folds: dict[str, Fold] = {}
        self._weights: dict[str, GraphWeights] = {}
        self._lone: dict[tuple[str, str], LoneLayer] = {}
        self._placed: dict[tuple[str, str], tuple[str, Placed]] = {}
        self.observed: dict[str, LayerCalibration] = {}
        for part, model in self.models.items():
            linears = list_linears(model.graph, list_carried(manifest))
            self.linears |= {linear.name: linear for linear in linears}
            self._weights |= dict.fromkeys(
                (linear.name for linear in linears), GraphWeights(folder, model)
            )
            self._folds |= find_folds(model.graph, linears, *self._heads[part])

    def add(self, quantized: QuantizedModel) -> None:
        """Take in every layer of a quantization, in the format it has there."""
        for part in quantized.stages.values():
            for stage in part.values():
                for name, lone in separate(stage, self._folds).items():
                    self._lone[name, lone.quantized.recipe.format] = lone
        recipe, calibration = quantized.plan.recipe, quantized.calibration
        self.observed |= {n: found for n, found in calibration.items() if n not in self.linears}
        self.add_products(recipe.attention.vision, recipe.kv_cache.format)

    def list_formats(self, layer: str) -> list[str]:
        """The formats of a layer that are there."""
        return [format for name, format in (*self._lone, *self._placed) if name == layer]

    def find(self, layer: str, format: str) -> LoneLayer:
        """A linear layer in one of its formats."""
        return self._lone[layer, format]

    def read_weight(self, layer: str) -> NDArray[np.float32]:
        """A linear layer's float matrix, float32[out, in]."""
        return self._weights[layer].read(self.linears[layer].weight)

    def compose(self, part: str, stage: str, choice: Choice) -> StageResult:
        """The linear layers of one stage in a choice, as `StageQuantizer` would give them."""
        result = StageResult()
        lone = {
            name: self._lone[name, choice[name]]
            for name in self.linears
            if self._where(name) == (part, stage) and choice.get(name, "float") != "float"
        }
        result.scales = {name: one.scales for name, one in lone.items() if one.scales is not None}
        divisors = _list_divisors(result.scales, self._folds)
        for name, one in lone.items():
            result.linears[name] = _scale_rows(one.quantized, divisors.get(name))
        result.replaced = self._divide_norms(result.scales)
        for name, divisor in divisors.items():
            linear = self.linears[name]
            tensors = [linear.bias] if name in lone else [linear.weight, linear.bias]
            result.replaced |= self._divide_rows(name, tensors, divisor)
        return result

    def change(self, part: str, stage: str, choice: Choice) -> Change | None:
        """What makes the chosen layers of a float stage quantized; None if there are none.

        Args:
            part: "vision" or "decoder".
            stage: its name in the part's graphs.
            choice: layers of other stages are passed over.
        """
        names = self.list_members(part, stage)
        chosen = {name: choice[name] for name in names if choice.get(name, "float") != "float"}
        if not chosen:
            return None
        composed = self.compose(part, stage, chosen)
        placed = {
            self.linears[name].node: place(self.linears[name], quantized)
            for name, quantized in composed.linears.items()
        }
        placed |= dict(self._placed[n, chosen[n]] for n in chosen if n not in self.linears)

        def apply(model: onnx.ModelProto) -> onnx.ModelProto:
            rewritten = rewrite(model, placed, composed.replaced)
            graph = rewritten.model.graph
            graph.initializer.extend(
                onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
                for name, array in rewritten.tensors.items()
            )
            _cast_caches(graph)
            return rewritten.model

        return apply

    def list_members(self, part: str, stage: str) -> list[str]:
        """Everything of a stage that can be quantized and is there in some format."""
        found = {name for name, _ in self._lone}
        names = [name for name in self.linears if name in found]
        names += dict.fromkeys(name for name, _ in self._placed)
        return [name for name in names if self._where(name) == (part, stage)]

    def list_all(self, part: str) -> list[str]:
        """The same of all stages of a part."""
        stages = dict.fromkeys(name_stage(node.name) for node in self.models[part].graph.node)
        return [name for stage in stages for name in self.list_members(part, stage)]

    def _where(self, name: str) -> tuple[str, str]:
        if name in self.linears:
            part = "vision" if name.startswith("visual.") else "decoder"
            return part, self.linears[name].stage
        if name.endswith(".attn.products"):
            return "vision", name.removesuffix(".attn.products")
        return "decoder", name.removesuffix(".self_attn.cache")

    def add_products(self, attention: str, cache: str) -> None:
        """Take in attention products and caches of some formats, by coverage's names for them."""
        vision, decoder = (self.models[part].graph for part in PARTS)
        products = make_attention_nodes(vision, attention, self.observed, self._heads["vision"][0])  # type: ignore[arg-type]
        caches = make_cache_nodes(decoder, cache, self.observed, self._heads["decoder"][1])  # type: ignore[arg-type]
        for format, nodes, suffix in (
            (attention, products, "attn.products"),
            (cache, caches, "self_attn.cache"),
        ):
            for node, placed in nodes.items():
                self._placed[f"{name_stage(node)}.{suffix}", format] = node, placed

    def _divide_norms(self, scales: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        replaced: dict[str, NDArray[Any]] = {}
        for name, values in scales.items():
            fold = self._folds[name]
            for vector in fold.vectors:
                replaced[vector] = self._weights[name].read(vector) / _share(fold, values)
        return replaced

    def _divide_rows(
        self, name: str, tensors: Sequence[str | None], divisor: Divisor
    ) -> dict[str, NDArray[Any]]:
        """A layer that makes the input of a quantized one; quantized itself, only its bias."""
        rows, shared = divisor
        replaced = {}
        for tensor in filter(None, tensors):
            values = self._weights[name].read(tensor).copy()
            values[rows] /= shared.reshape(-1, *[1] * (values.ndim - 1))
            replaced[tensor] = values
        return replaced


def _share(fold: Fold, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales of a layer's inputs -> of what they are folded into."""
    shared = np.ones(fold.num_channels, np.float32)
    shared[fold.channels] = scales
    return shared


def _list_divisors(
    scales: Mapping[str, NDArray[np.float32]], folds: Mapping[str, Fold]
) -> dict[str, Divisor]:
    """Layer -> which of its rows the layers behind it divide, and by what."""
    divisors = {}
    for name, values in scales.items():
        fold = folds[name]
        if fold.rows is not None:
            source, first = fold.rows
            shared = _share(fold, values)
            divisors[source] = slice(first, first + len(shared)), shared
    return divisors


def _scale_rows(
    quantized: QuantizedLinear,
    divisor: Divisor | None,
    *,
    undo: bool = False,
) -> QuantizedLinear:
    """A layer with some rows divided, or multiplied back; its codes stay."""
    if divisor is None:
        return quantized
    rows, shared = divisor
    factors = shared if undo else 1 / shared

    def scale(values: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = np.array(values)
        changed[rows] *= factors.reshape(-1, *[1] * (changed.ndim - 1))
        return changed

    bias = None if quantized.bias is None else scale(quantized.bias)
    return dataclasses.replace(quantized, scales=scale(quantized.scales), bias=bias)


def _cast_caches(graph: onnx.GraphProto) -> None:
    """Let attentions with int8 caches take the empty float ones of a walk."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if any(attribute.name == "kv_cache_bit_width" for attribute in node.attribute):
            for index, kind in _PAST.items():
                cast = f"{node.name}/past_{kind}/Cast"
                nodes.append(
                    onnx.helper.make_node(
                        "Cast", [node.input[index]], [cast], cast, to=onnx.TensorProto.INT8
                    )
                )
                node.input[index] = cast
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
