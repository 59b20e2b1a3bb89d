"""Count what is multiplied and moved: by the ViT, a prompt, a token.

A piece of work is one product, or what stands between two of them. FLOPs are two for a
multiply-add. Bytes moved are weights, activations in and out, and the cache: what no cache of the
chip holds from one kernel to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .model_shapes import PATCH_EMBED, Attention, Matrix, ModelShapes, Rows
from .precision import FLOAT_BYTES, LayerPrecision, ModelPrecision
from .weight_bytes import StorageRules, matrix_bytes

Rate = Literal["single", "half", "int8", "fp8"]

# Values that the work between products reads and writes per row and layer, in widths of the row:
# norm (2), rotation (3), residual sums (5); and of the MLP's width: the activation, and the gate.
NORMS_AND_SUMS = 10
VISION_MLP_PASSES, DECODER_MLP_PASSES = 2, 3
# A score that is not kept on the chip is written and read by the product, the mask and the softmax.
SCORE_PASSES = 6


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel's, or what stands between two.

    Attributes:
        flops: two a multiply-add.
        rate: what they are computed in.
        weight_bytes: read.
        moved_bytes: activations and cache, read and written.
        launches: kernels; 0 of what is fused into its neighbours.
    """

    name: str
    flops: int
    rate: Rate
    weight_bytes: int
    moved_bytes: int
    launches: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the decoder.

    Attributes:
        batch: sequences.
        new_tokens: of each.
        attended: keys that are multiplied with, new ones included.
    """

    batch: int
    new_tokens: int
    attended: int


@dataclass(frozen=True, slots=True)
class Costing:
    """What is the same for all work of a model.

    Attributes:
        fused_vision, fused_decoder: whether attention's scores stay on the chip.
    """

    shapes: ModelShapes
    precision: ModelPrecision
    rules: StorageRules
    fused_vision: bool = True
    fused_decoder: bool = True

    @property
    def float_bytes(self) -> int:
        """Of an activation."""
        return FLOAT_BYTES[self.rules.float_name]

    @property
    def float_rate(self) -> Rate:
        """Of products of floats."""
        return "single" if self.float_bytes == 4 else "half"


def list_vision(costing: Costing, num_patches: int, num_slices: int, num_frames: int) -> list[Work]:
    """The ViT over slices of one grid, in one call.

    Args:
        costing: of the model.
        num_patches: of one slice; attention stays within it.
        num_slices: pictures, or frame pairs of a clip.
        num_frames: 1 of a picture, 2 of a clip.
    """
    shapes, size = costing.shapes, costing.float_bytes
    patches = num_patches * num_slices
    rows: dict[Rows, int] = {"patches": patches, "visual tokens": patches // shapes.merged_patches}
    width, values = shapes.vision_width, shapes.frame_patch_size * num_frames
    work = [
        Work(
            PATCH_EMBED,
            2 * patches * width * values,
            "single",
            costing.rules.patch_bytes * width * values,
            patches * (values + 4 * width),
        )
    ]
    for layer in shapes.vision:
        if isinstance(layer, Matrix):
            work.append(_multiply(costing, layer, rows[layer.rows]))
        elif isinstance(layer, Attention):
            rate = "fp8" if costing.precision.vision_attention == "fp8" else costing.float_rate
            one = _attend(costing, layer, num_patches, num_patches, rate, costing.fused_vision)
            work.append(_repeat(one, num_slices))
            between = NORMS_AND_SUMS * width + VISION_MLP_PASSES * shapes.vision_mlp
            work.append(Work(f"{layer.name}.between", 0, "half", 0, size * patches * between, 0))
    return work


def list_decoder(costing: Costing, call: Call) -> list[Work]:
    """One call of the decoder."""
    shapes, size = costing.shapes, costing.float_bytes
    new = call.batch * call.new_tokens
    rows: dict[Rows, int] = {"new tokens": new, "answers": call.batch}
    work = []
    for layer in shapes.decoder:
        if isinstance(layer, Matrix):
            work.append(_multiply(costing, layer, rows[layer.rows]))
        elif isinstance(layer, Attention):
            one = _attend(
                costing,
                layer,
                call.new_tokens,
                call.attended,
                costing.float_rate,
                costing.fused_decoder,
            )
            work.append(_repeat(one, call.batch))
            between = NORMS_AND_SUMS * shapes.hidden_size + DECODER_MLP_PASSES * shapes.decoder_mlp
            work.append(Work(f"{layer.name}.between", 0, "half", 0, size * new * between, 0))
    return work


def list_calls(
    num_prompt_tokens: int, capacity: int, chunk: int, *, in_place: bool, batch: int = 1
) -> list[Call]:
    """The calls that fill the cache with a prompt, as the engine runtime makes them.

    A cache that is written in place is multiplied with whole, masked where it is empty. One that is
    appended to is left out of a prompt's first call, and whole in the others.
    """
    calls = []
    for start in range(0, num_prompt_tokens, chunk):
        new = min(chunk, num_prompt_tokens - start)
        seen = capacity if in_place else new + (capacity if start else 1)
        calls.append(Call(batch, new, seen))
    return calls


def decode_call(capacity: int, *, in_place: bool, batch: int = 1) -> Call:
    """The call that makes one token more."""
    return Call(batch, 1, capacity if in_place else capacity + 1)


def sum_flops(work: Iterable[Work]) -> int:
    """Of all of it."""
    return sum(piece.flops for piece in work)


def sum_bytes(work: Iterable[Work]) -> int:
    """Weights and what moves."""
    return sum(piece.weight_bytes + piece.moved_bytes for piece in work)


def rate_of(how: LayerPrecision, float_rate: Rate) -> Rate:
    """What a product is computed in: weights alone being integers, floats multiply."""
    if how.kind in ("static", "dynamic"):
        return "int8"
    if how.kind == "float32":
        return "single"
    return "fp8" if how.kind == "fp8" else float_rate


def join(parts: Sequence[list[Work]]) -> list[Work]:
    """Several calls one after another."""
    return [work for part in parts for work in part]


def _multiply(costing: Costing, matrix: Matrix, rows: int) -> Work:
    how = costing.precision.of(matrix.name, costing.rules.float_name)
    rate = rate_of(how, costing.float_rate)
    input_bytes = 1 if rate in ("int8", "fp8") else costing.float_bytes
    out = 4 if matrix.part == "lm_head" else costing.float_bytes
    return Work(
        matrix.name,
        2 * rows * matrix.num_weights,
        rate,
        matrix_bytes(matrix, costing.precision, costing.rules),
        rows * (input_bytes * matrix.in_features + out * matrix.out_features),
    )


def _attend(
    costing: Costing, layer: Attention, rows: int, columns: int, rate: Rate, is_fused: bool
) -> Work:
    """One sequence's or picture's: queries, keys and values once, the mixture back."""
    size, heads, kv_heads = costing.float_bytes, layer.num_heads, layer.num_kv_heads
    moved = size * layer.head_dim * (2 * rows * heads + 2 * columns * kv_heads)
    launches = 1
    if not is_fused:
        moved += SCORE_PASSES * size * heads * rows * columns
        launches = 3
    flops = 4 * rows * columns * heads * layer.head_dim
    return Work(f"{layer.name}.products", flops, rate, 0, moved, launches)


def _repeat(work: Work, count: int) -> Work:
    """The same for several sequences, in one kernel."""
    return Work(
        work.name, work.flops * count, work.rate, 0, work.moved_bytes * count, work.launches
    )
