"""The sample's sizes: one frozen table, and the config.json the hub's layout makes of it."""

from __future__ import annotations

from dataclasses import dataclass

PATCH_PX = 14
MERGE = 2
CELL_PX = PATCH_PX * MERGE  # side of one visual token
FRAMES_PER_PATCH = 2


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """Sizes of the small Qwen2-VL."""

    vocab_size: int
    vision_width: int = 192
    vision_depth: int = 5
    vision_heads: int = 6
    vision_mlp_ratio: int = 4
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 2
    mlp_size: int = 512
    rope_theta: float = 10_000.0
    mrope_section: tuple[int, int, int] = (4, 6, 6)  # of the head's 16 frequencies
    norm_eps: float = 1e-6
    min_pixels: int = 4 * CELL_PX * CELL_PX
    max_pixels: int = 128 * CELL_PX * CELL_PX

    @property
    def head_size(self) -> int:
        """Width of one decoder head."""
        return self.hidden_size // self.num_heads


def make_config(spec: SampleSpec, ids: dict[str, int]) -> dict[str, object]:
    """config.json as the 2B checkpoint writes it, with our numbers. `ids`: special token -> id."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": spec.mlp_size,
        "max_position_embeddings": 2048,
        "max_window_layers": spec.num_layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "sliding_window": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": spec.vision_depth,
            "embed_dim": spec.vision_width,
            "mlp_ratio": spec.vision_mlp_ratio,
            "num_heads": spec.vision_heads,
            "in_chans": 3,
            "in_channels": 3,
            "hidden_size": spec.hidden_size,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH_PX,
            "temporal_patch_size": FRAMES_PER_PATCH,
            "hidden_act": "quick_gelu",
            "model_type": "qwen2_vl",
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(spec.mrope_section)},
        "vocab_size": spec.vocab_size,
    }
