"""Say what will lie on the device for a model and recipe: graphs, types, stored bytes.

On a GPU a checkpoint, or a bundle of ONNX Runtime's flavor, is planned as `vlmedge export --target`
would write it. Without one the graphs are ONNX Runtime's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..lowering.options import DEFAULT_CONTEXT
from ..lowering.targets import TARGETS, Target, check_device, find_target
from .devices import Device
from .model_shapes import Part
from .precision import (
    FLOAT_BYTES,
    FloatName,
    LayerPrecision,
    ModelPrecision,
    lower_precision,
    parse_precision,
    read_precision,
)
from .sources import PlanModel
from .weight_bytes import (
    DATA_FILES,
    StoredTensor,
    list_tensors,
    matrix_bytes,
    measure_table,
    onnxruntime_rules,
    sum_parts,
    tensorrt_rules,
)
from .work import Costing

_PACKED_TWICE = "mlp.gate_proj+up_proj"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
DtypeOption = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[DtypeOption, FloatName] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What a board's engines are planned for if nothing is said: the oldest JetPack that an Orin has,
# the one with a cache in place on a Thor.
DEFAULT_TARGETS = {"orin": "jetpack-6.2", "thor": "jetpack-7.2", None: "tensorrt-11"}


@dataclass(frozen=True, slots=True)
class Setup:
    """A model as it stands on a device.

    Attributes:
        costing: its shapes and precisions.
        target: the TensorRT it is written for; None: ONNX Runtime.
        tensors: graph -> its weights.
        table_bytes: of the embedding table.
        cache_element_bytes: of keys and values.
    """

    model: PlanModel
    device: Device
    costing: Costing
    target: Target | None
    tensors: dict[str, list[StoredTensor]]
    table_bytes: int
    cache_element_bytes: int

    @property
    def in_place(self) -> bool:
        """Whether decoder calls write the whole cache; ONNX Runtime's read its used part."""
        return self.target is not None and self.target.cache == "in_place"

    def find_context(self, asked: int | None) -> int | None:
        """Tokens of the cache; None: as many as a request takes, where no graph fixes them.

        Raises:
            ValueError: the bundle's graph fixes another number.
        """
        manifest = self.model.manifest
        fixed = manifest.target.capacity if manifest and manifest.target else None
        if fixed is not None and asked not in (None, fixed):
            raise ValueError(
                f"context is {asked}, the bundle's graph fixes {fixed}: export it with --context "
                f"{asked}, or leave it out"
            )
        if asked is None and fixed is None and self.in_place:
            return min(DEFAULT_CONTEXT, self.model.decoder.max_position_embeddings)
        return asked if fixed is None else fixed

    @property
    def weights(self) -> dict[Part, int]:
        """Bytes of each part of the graphs of pictures and tokens."""
        parts: dict[Part, int] = {"vision": 0, "decoder": 0, "lm_head": 0}
        return {**parts, **sum_parts([*self.tensors["vision"], *self.tensors["decoder"]])}

    @property
    def repeated_bytes(self) -> int:
        """Float matrices that engines hold twice, packed for prompts and for single tokens.

        Of engines that TensorRT-RTX built these are gate and up of all layers but the last, which
        sees one row either way. Quantized ones are there once.
        """
        costing = self.costing
        if self.target is None:
            return 0
        return sum(
            matrix_bytes(matrix, costing.precision, costing.rules)
            for matrix in costing.shapes.matrices
            if matrix.name.endswith(_PACKED_TWICE)
            and matrix.rows == "new tokens"
            and costing.precision.of(matrix.name, costing.rules.float_name).is_float
        )

    @property
    def layer_bytes(self) -> list[int]:
        """Bytes of each layer of the decoder; what belongs to none is the last one's."""
        sizes = [0] * self.costing.shapes.num_layers
        for tensor in self.tensors["decoder"]:
            if tensor.part == "decoder":
                found = _LAYER.match(tensor.name)
                sizes[int(found[1]) if found else -1] += tensor.nbytes
        return sizes


def make_setup(
    model: PlanModel,
    device: Device,
    recipe: str | None = None,
    dtype: DtypeOption = "bf16",
    target: str | None = None,
    *,
    count_scores: bool = False,
) -> Setup:
    """Decide what stands on the device.

    Args:
        model: what is planned.
        device: where.
        recipe: by which it will be quantized; None: as it is.
        dtype: what TensorRT computes in.
        target: whose graphs; None: the device's usual.
        count_scores: whether the ViT's attention scores are kept in memory.

    Raises:
        ValueError: a recipe, a target or a type that doesn't go with model or device.
    """
    is_quantized = model.precision is not None and model.precision.name != "float"
    if recipe is not None and (is_quantized or (model.manifest and model.manifest.target)):
        raise ValueError(
            f"the bundle {model.name} is quantized or lowered already: leave --recipe out, or give "
            "the checkpoint"
        )
    if model.manifest is not None and model.manifest.target is not None:
        return _keep_lowered(model, device, count_scores)
    if not device.has_gpu:
        if target is not None:
            raise ValueError(f"target {target} is for TensorRT, {device.label} runs none")
        return _use_onnxruntime(model, device, recipe)
    row = find_target(target or DEFAULT_TARGETS[device.kind])
    compute = DTYPES[dtype]
    raw = _read_raw(model, recipe, compute)
    check_device(_list_words(raw), row, device.kind)
    precision = lower_precision(raw, model.shapes, row, compute)
    rules = tensorrt_rules(compute)
    head = _head_of(raw) if raw.table == "lm_head" else None
    return Setup(
        model,
        device,
        Costing(model.shapes, precision, rules, not count_scores, row.fused),
        row,
        {
            graph: list_tensors(model.shapes, precision, rules, graph, by_recipe=True)
            for graph in DATA_FILES
        },
        model.table_bytes or measure_table(model.shapes, raw, model.stored, head),
        FLOAT_BYTES[compute],
    )


def _keep_lowered(model: PlanModel, device: Device, count_scores: bool) -> Setup:
    """A bundle of TensorRT's graphs, as it is."""
    assert model.manifest is not None
    assert model.manifest.target is not None
    assert model.precision is not None
    assert model.tensors is not None
    record = model.manifest.target
    row = TARGETS.get(record.name)
    if device.has_gpu and row is not None:
        check_device(_list_words(model.precision), row, device.kind)
    fused = row is not None and row.fused
    return Setup(
        model,
        device,
        Costing(
            model.shapes, model.precision, tensorrt_rules(record.dtype), not count_scores, fused
        ),
        row,
        model.tensors,
        model.table_bytes or 0,
        FLOAT_BYTES[record.dtype],
    )


def _use_onnxruntime(model: PlanModel, device: Device, recipe: str | None) -> Setup:
    precision = _read_raw(model, recipe, "float32")
    rules = onnxruntime_rules()
    tensors = model.tensors if recipe is None else None
    return Setup(
        model,
        device,
        Costing(model.shapes, precision, rules),
        None,
        tensors
        or {
            graph: list_tensors(model.shapes, precision, rules, graph, by_recipe=recipe is not None)
            for graph in DATA_FILES
        },
        model.table_bytes or measure_table(model.shapes, precision, model.stored, None),
        4 if precision.cache == "float" else 1,
    )


def _read_raw(model: PlanModel, recipe: str | None, floats: FloatName) -> ModelPrecision:
    """As the quantizer leaves it, or as the bundle is."""
    if recipe is None:
        return model.precision or ModelPrecision()
    return read_precision(recipe, model.shapes, floats, tied=model.tied_lm_head is not False)


def _list_words(precision: ModelPrecision) -> list[str]:
    """One for each layer, and for the products of attention."""
    words = list((precision.layers or {}).values())
    return [*words, "float8_e4m3fn"] if precision.vision_attention == "fp8" else words


def _head_of(precision: ModelPrecision) -> LayerPrecision:
    return parse_precision((precision.layers or {})["lm_head"])
