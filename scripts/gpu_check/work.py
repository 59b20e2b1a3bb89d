"""Shapes and lengths -> what a ViT, a prompt and a token must compute and read, at the least.

FLOPs are two a multiply-add, of the matrices and the two products of attention. Bytes of a token
are all weights of the decoder and the keys and values that it attends to: no engine can read less.
"""

from __future__ import annotations

from vlmedge.export.checkpoint.config import ModelSpec

CACHE_BYTES = 2  # of a value in fp16 or bf16


def count_vision_flops(spec: ModelSpec, num_patches: int) -> int:
    """Of one picture; a picture's patches are those of one frame, 588 values each."""
    vision = spec.vision
    width, merged = vision.embed_dim, spec.merged_size
    block = width * 3 * width + width * width + 2 * width * spec.vision_mlp_size
    merger = merged * merged + merged * spec.decoder.hidden_size
    num_tokens = num_patches // vision.spatial_merge_size**2
    matrices = num_patches * (spec.frame_patch_size * width + vision.depth * block)
    attention = 2 * num_patches**2 * width * vision.depth
    return 2 * (matrices + num_tokens * merger + attention)


def count_prefill_flops(spec: ModelSpec, num_tokens: int) -> int:
    """Of a prompt in an empty cache; attention is causal: half of the square. One row of logits."""
    decoder = spec.decoder
    matrices = num_tokens * decoder.num_layers * _count_layer_weights(spec)
    attention = num_tokens**2 * decoder.num_heads * decoder.head_dim * decoder.num_layers
    return 2 * (matrices + attention + decoder.hidden_size * decoder.vocab_size)


def count_cache_bytes(spec: ModelSpec, num_tokens: int) -> int:
    """Keys and values of so many tokens."""
    decoder = spec.decoder
    row = decoder.num_kv_heads * decoder.head_dim * CACHE_BYTES
    return 2 * decoder.num_layers * num_tokens * row


def _count_layer_weights(spec: ModelSpec) -> int:
    decoder = spec.decoder
    width = decoder.hidden_size
    heads = decoder.num_heads * decoder.head_dim
    shared = decoder.num_kv_heads * decoder.head_dim
    return width * (heads + 2 * shared) + heads * width + 3 * width * spec.decoder_mlp_size
