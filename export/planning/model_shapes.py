"""List every matrix, vector and attention of a model by the sizes of its config, in running order.

Matrices carry the names that recipes and manifests use: layers that share an input are one matrix
("model.layers.0.mlp.gate_proj+up_proj"). No weights are needed, nor any package beside the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...runtime.bundle.manifest import DecoderSpec, VisionSpec

Part = Literal["vision", "decoder", "lm_head"]
# What a layer runs over: patches, visual tokens, new tokens of the decoder, or one row a sequence.
Rows = Literal["patches", "visual tokens", "new tokens", "answers"]

LM_HEAD = "lm_head"
PATCH_EMBED = "visual.patch_embed.proj"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer, [out, in]."""

    name: str
    part: Part
    rows: Rows
    out_features: int
    in_features: int
    has_bias: bool = False

    @property
    def num_weights(self) -> int:
        """Without the bias."""
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class Vector:
    """A norm's weight or bias."""

    name: str
    part: Part
    size: int


@dataclass(frozen=True, slots=True)
class Attention:
    """The two products of an attention: every row of queries with every key it sees."""

    name: str
    part: Part
    rows: Rows
    num_heads: int
    num_kv_heads: int
    head_dim: int


Layer = Matrix | Vector | Attention


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """A vision-language model as far as bytes and FLOPs go.

    Attributes:
        vision, decoder: layers in the order they run; the lm_head is the decoder's last.
        frame_patch_size: values of a patch of one frame, 3 * 14 * 14.
        frames_per_patch: of a clip; a picture has one frame.
        merged_patches: patches of a visual token.
        vision_width, vision_mlp: channels of a patch, and between its MLP's two matrices.
        hidden_size, decoder_mlp: the same of the decoder's tokens.
        vision_heads: scores of the ViT's attention per pair of patches.
        table_rows: tokens of the vocabulary.
    """

    vision: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    frame_patch_size: int
    frames_per_patch: int
    merged_patches: int
    vision_width: int
    vision_mlp: int
    vision_heads: int
    hidden_size: int
    decoder_mlp: int
    num_heads: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    table_rows: int

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Of both graphs; the embedding of patches, which is no layer of recipes, is left out."""
        return tuple(x for x in (*self.vision, *self.decoder) if isinstance(x, Matrix))

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Of both graphs."""
        return tuple(x for x in (*self.vision, *self.decoder) if isinstance(x, Attention))

    @property
    def qkv_width(self) -> int:
        """Channels of a token's queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def count_parameters(self, *, tied: bool) -> int:
        """As checkpoints are counted: patches of two frames; a tied lm_head once."""
        layers = (*self.vision, *self.decoder)
        matrices = sum(m.num_weights + m.has_bias * m.out_features for m in self.matrices)
        vectors = sum(x.size for x in layers if isinstance(x, Vector))
        patches = self.vision_width * self.frame_patch_size * self.frames_per_patch
        table = 0 if tied else self.table_rows * self.hidden_size
        return matrices + vectors + patches + table

    def cache_bytes(self, capacity: int, batch: int, element_bytes: int) -> int:
        """Keys and values of all layers."""
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return per_token * capacity * batch * element_bytes


def make_shapes(
    vision: VisionSpec, decoder: DecoderSpec, vision_mlp: int, decoder_mlp: int
) -> ModelShapes:
    """The layers of a Qwen2-VL of these sizes."""
    return ModelShapes(
        vision=tuple(_list_vision(vision, vision_mlp, decoder.hidden_size)),
        decoder=tuple(_list_decoder(decoder, decoder_mlp)),
        frame_patch_size=3 * vision.patch_size**2,
        frames_per_patch=vision.temporal_patch_size,
        merged_patches=vision.spatial_merge_size**2,
        vision_width=vision.embed_dim,
        vision_mlp=vision_mlp,
        vision_heads=vision.num_heads,
        hidden_size=decoder.hidden_size,
        decoder_mlp=decoder_mlp,
        num_heads=decoder.num_heads,
        num_layers=decoder.num_layers,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        table_rows=decoder.vocab_size,
    )


def _list_vision(vision: VisionSpec, mlp: int, hidden_size: int) -> Iterator[Layer]:
    dim, heads = vision.embed_dim, vision.num_heads
    merged = dim * vision.spatial_merge_size**2

    def matrix(name: str, out: int, size: int, rows: Rows = "patches") -> Matrix:
        return Matrix(name, "vision", rows, out, size, has_bias=True)

    def norm(name: str) -> Iterator[Vector]:
        yield Vector(f"{name}.weight", "vision", dim)
        yield Vector(f"{name}.bias", "vision", dim)

    yield from norm("visual.blocks.0.norm1")
    for i in range(vision.depth):
        block = f"visual.blocks.{i}"
        yield matrix(f"{block}.attn.qkv", 3 * dim, dim)
        yield Attention(f"{block}.attn", "vision", "patches", heads, heads, dim // heads)
        yield matrix(f"{block}.attn.proj", dim, dim)
        yield from norm(f"{block}.norm2")
        yield matrix(f"{block}.mlp.fc1", mlp, dim)
        yield matrix(f"{block}.mlp.fc2", dim, mlp)
        last = i + 1 == vision.depth
        yield from norm("visual.merger.ln_q" if last else f"visual.blocks.{i + 1}.norm1")
    yield matrix("visual.merger.mlp.0", merged, merged, "visual tokens")
    yield matrix("visual.merger.mlp.2", hidden_size, merged, "visual tokens")


def _list_decoder(decoder: DecoderSpec, mlp: int) -> Iterator[Layer]:
    hidden, heads, kv_heads = decoder.hidden_size, decoder.num_heads, decoder.num_kv_heads
    qkv = (heads + 2 * kv_heads) * decoder.head_dim
    yield Vector("model.layers.0.input_layernorm.weight", "decoder", hidden)
    for i in range(decoder.num_layers):
        layer, last = f"model.layers.{i}", i + 1 == decoder.num_layers
        # Nothing after the last layer's attention looks at other positions than the asked-for.
        rows: Rows = "answers" if last else "new tokens"
        attention = f"{layer}.self_attn"
        yield Matrix(
            f"{attention}.q_proj+k_proj+v_proj", "decoder", "new tokens", qkv, hidden, True
        )
        yield Attention(attention, "decoder", "new tokens", heads, kv_heads, decoder.head_dim)
        yield Matrix(f"{attention}.o_proj", "decoder", rows, hidden, heads * decoder.head_dim)
        yield Vector(f"{layer}.post_attention_layernorm.weight", "decoder", hidden)
        yield Matrix(f"{layer}.mlp.gate_proj+up_proj", "decoder", rows, 2 * mlp, hidden)
        yield Matrix(f"{layer}.mlp.down_proj", "decoder", rows, hidden, mlp)
        norm = "model.norm" if last else f"model.layers.{i + 1}.input_layernorm"
        yield Vector(f"{norm}.weight", "decoder", hidden)
    yield Matrix(LM_HEAD, "lm_head", "answers", decoder.vocab_size, hidden)
