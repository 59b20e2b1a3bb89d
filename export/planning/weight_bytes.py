"""List every stored tensor with its bytes by layer precisions, and the sizes of data files.

    matrix   float [N, K], or codes [N, K] and scales, one a row or one a block
    vector   norms and biases, always float
    patches  the embedding of pixel patches, always float: one for pictures, one for frame pairs

Order and alignment are those of the writers of bundles: a file's size comes out to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ...quant.files.hashed_file import align
from .model_shapes import PATCH_EMBED, Matrix, ModelShapes, Part, Vector
from .precision import FLOAT_BYTES, FloatName, LayerPrecision, ModelPrecision

Graph = Literal["vision", "vision_video", "decoder"]
INLINE_BYTES = 64  # what the quantizer makes and is no larger lies in the graph's own file
# graph -> the file its weights are in; the two vision graphs share one
DATA_FILES: dict[Graph, str] = {
    "vision": "vision.onnx.data",
    "vision_video": "vision.onnx.data",
    "decoder": "decoder.onnx.data",
}


@dataclass(frozen=True, slots=True)
class StorageRules:
    """What a flavor of graphs stores beside the codes.

    Attributes:
        float_name: of matrices that are not quantized.
        norm_bytes, bias_bytes, scale_bytes, patch_bytes: of an element of norms, of biases and
            centres, of scales, of the patch embedding.
        pads_blocks: whether the last block of a row is stored whole.
    """

    float_name: FloatName
    norm_bytes: int
    bias_bytes: int
    scale_bytes: int
    patch_bytes: int
    pads_blocks: bool


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a graph; `is_made`: the quantizer makes it, an export doesn't."""

    name: str
    part: Part
    nbytes: int
    is_made: bool = False

    @property
    def is_inline(self) -> bool:
        """Whether it lies in the graph's own file."""
        return self.is_made and self.nbytes <= INLINE_BYTES


def onnxruntime_rules(float_name: FloatName = "float32") -> StorageRules:
    """Float32 but for the matrices."""
    return StorageRules(float_name, 4, 4, 4, 4, pads_blocks=True)


def tensorrt_rules(compute: FloatName) -> StorageRules:
    """The compute type, but for norms and the patch embedding."""
    size = FLOAT_BYTES[compute]
    return StorageRules(compute, 4, size, size, 4, pads_blocks=False)


def list_tensors(
    shapes: ModelShapes,
    precision: ModelPrecision,
    rules: StorageRules,
    graph: Graph,
    *,
    by_recipe: bool,
) -> list[StoredTensor]:
    """Everything one graph refers to, in the order of its file.

    A vector that centres a layer's input is among them wherever the quantizer may add one; it
    does where the calibration data ask for it, which so far was everywhere.

    Args:
        shapes: of the model.
        precision: of its layers.
        rules: of the graphs' flavor.
        graph: which one.
        by_recipe: whether the quantizer writes them: what it makes comes after what it keeps.
    """
    tensors: list[StoredTensor] = []
    if graph != "decoder":
        tensors += _list_patch_embed(shapes, rules, 2 if graph == "vision_video" else 1)
    for layer in shapes.decoder if graph == "decoder" else shapes.vision:
        if isinstance(layer, Vector):
            size = layer.size * rules.norm_bytes
            tensors.append(StoredTensor(layer.name, layer.part, size))
        elif isinstance(layer, Matrix):
            tensors += _list_matrix(layer, precision, rules, by_recipe=by_recipe)
        elif graph == "decoder" and precision.cache == "int8-channel":
            size = shapes.num_kv_heads * shapes.head_dim * rules.scale_bytes
            tensors += [
                StoredTensor(f"{layer.name}.cache.{part}.scale", "decoder", size, is_made=True)
                for part in ("key", "value")
            ]
    return sorted(tensors, key=lambda tensor: tensor.is_made)


def measure_data_files(
    shapes: ModelShapes, precision: ModelPrecision, rules: StorageRules, *, by_recipe: bool
) -> dict[str, int]:
    """Data file -> its bytes; arguments as of `list_tensors`."""
    files: dict[str, dict[str, StoredTensor]] = {}
    for graph, file in DATA_FILES.items():
        for tensor in list_tensors(shapes, precision, rules, graph, by_recipe=by_recipe):
            if not tensor.is_inline:  # one name is one tensor, whichever graphs refer to it
                files.setdefault(file, {}).setdefault(tensor.name, tensor)
    return {file: measure_file(tensors.values()) for file, tensors in files.items()}


def measure_file(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of a file with these tensors one after another, each aligned."""
    position = 0
    for tensor in tensors:
        position = align(position, tensor.nbytes) + tensor.nbytes
    return position


def measure_table(
    shapes: ModelShapes, precision: ModelPrecision, stored: FloatName, head: LayerPrecision | None
) -> int:
    """Bytes of the token embeddings' own files.

    Args:
        shapes: of the model.
        precision: tells how the table is kept.
        stored: what floats of the checkpoint are.
        head: of the recipe, where the table is a copy of the lm_head's matrix and not the matrix
            itself: an engine gives nobody its weights.
    """
    rows, width = shapes.table_rows, shapes.hidden_size
    if precision.table == "float":
        return rows * width * FLOAT_BYTES[stored]
    if precision.table != "lm_head":
        return rows * (width + 4)  # codes of a byte, a float32 scale a row
    if head is None:
        return 0
    blocks = -(-width // head.block_size)
    return measure_file(
        StoredTensor("", "lm_head", nbytes)
        for nbytes in (rows * blocks * head.block_size * head.bits // 8, 4 * rows * blocks)
    )


def sum_parts(tensors: Iterable[StoredTensor]) -> dict[Part, int]:
    """Bytes of each part's tensors."""
    sizes: dict[Part, int] = {}
    for tensor in tensors:
        sizes[tensor.part] = sizes.get(tensor.part, 0) + tensor.nbytes
    return sizes


def matrix_bytes(matrix: Matrix, precision: ModelPrecision, rules: StorageRules) -> int:
    """Of one layer with its scales, without its bias: what a product reads."""
    bias = f"{matrix.name}.bias"
    tensors = _list_matrix(matrix, precision, rules, by_recipe=True)
    return sum(tensor.nbytes for tensor in tensors if tensor.name != bias)


def _list_matrix(
    matrix: Matrix, precision: ModelPrecision, rules: StorageRules, *, by_recipe: bool
) -> list[StoredTensor]:
    name, out, size = f"{matrix.name}.weight", matrix.out_features, matrix.in_features
    how = precision.of(matrix.name, rules.float_name)
    sizes: dict[str, int] = {}
    if how.is_float:
        sizes[name] = out * size * how.bits // 8
    elif how.kind == "weights":
        block_size = how.block_size or size
        blocks = -(-size // block_size)
        stored = blocks * block_size if rules.pads_blocks else size
        sizes[f"{name}.packed"] = -(-out * stored * how.bits // 8)
        sizes[f"{name}.scales"] = out * blocks * rules.scale_bytes
    else:
        if matrix.name in precision.may_shift:
            sizes[f"{matrix.name}.shift"] = size * rules.bias_bytes
        sizes[f"{name}.{'fp8' if how.kind == 'fp8' else 'int8'}"] = out * size
        sizes[f"{name}.scales"] = out * rules.scale_bytes
        sizes[f"{name}.zero_points"] = out
    is_made = by_recipe and not how.is_float
    bias = {f"{matrix.name}.bias": out * rules.bias_bytes} if matrix.has_bias else {}
    ordered = {**sizes, **bias} if is_made else {**bias, **sizes}
    return [StoredTensor(n, matrix.part, nbytes, is_made) for n, nbytes in ordered.items()]


def _list_patch_embed(
    shapes: ModelShapes, rules: StorageRules, num_frames: int
) -> Iterator[StoredTensor]:
    size = num_frames * shapes.frame_patch_size
    name = f"{PATCH_EMBED}.weight.{size}"
    width = shapes.vision_width * rules.patch_bytes
    yield StoredTensor(name, "vision", width * size)
    yield StoredTensor(f"{name}.bias", "vision", width)
