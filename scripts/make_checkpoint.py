"""A seeded random Qwen2-VL checkpoint, laid out as the hub lays it out, in any size.

Names, shapes, shards, config.json, tokenizer and chat template are those of a real checkpoint; the
numbers are noise. It measures exporters and runtimes; it can't answer anything. Streamed: a 2B
checkpoint (4.4 GB) is written with about 100 MB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_processor import special_ids, write_json, write_processor
from numpy.typing import NDArray

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.shapes import expected_shapes

BLOCK_ELEMENTS = 1 << 21
SHARD_BYTES = 4_000_000_000  # the hub's 2B has shards of 3.99 and 0.43 GB


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of one model; the special ids are the last of the vocabulary's used part."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    vocab_size: int
    tied: bool
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    depth: int = 32
    vision_dim: int = 1280
    vision_heads: int = 16
    # Keys and values of rope_scaling beside M-RoPE's: (("type", "yarn"), ("factor", 4.0), ...)
    rope_scaling: tuple[tuple[str, Any], ...] = ()


SIZES = {
    "2b": Size(1536, 28, 12, 2, 8960, 151936, tied=True),
    "7b": Size(3584, 28, 28, 4, 18944, 152064, tied=False),
    "72b": Size(8192, 80, 64, 8, 29568, 152064, tied=False),
    # The 2B's width with two layers each: real matrix shapes in seconds.
    "2b-short": Size(1536, 2, 12, 2, 8960, 151936, tied=True, depth=2),
    "tiny": Size(64, 2, 4, 2, 96, 320, True, (2, 3, 3), depth=2, vision_dim=32, vision_heads=2),
    # The 7B's ratios: 7 query heads to a key head, an lm_head of its own; one layer more than ViT.
    "tiny-7b": Size(
        112, 3, 7, 1, 160, 352, False, (2, 3, 3), depth=2, vision_dim=48, vision_heads=3
    ),
}


def make_checkpoint(
    folder: Path, size: str | Size = "tiny", seed: int = 0, *, dtype: str = "BF16"
) -> Path:
    """Write a checkpoint.

    Args:
        folder: made if missing.
        size: a key of SIZES, or a shape of one's own.
        seed: of the weights.
        dtype: "BF16", "F16" or "F32".

    Returns:
        The folder.
    """
    shape = SIZES[size] if isinstance(size, str) else size
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", make_config(shape, dtype))
    write_processor(folder, shape.vocab_size)
    shapes = expected_shapes(read_model_spec(folder))
    write_shards(folder, shapes, seed, dtype)
    return folder


def make_config(size: Size, dtype: str) -> dict:
    """config.json in the hub's flat layout."""
    ids = special_ids(size.vocab_size)
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "vision_token_id": ids["vision_pad"],
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": size.mlp_size,
        "max_position_embeddings": 32768,
        "max_window_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_hidden_layers": size.num_layers,
        "num_key_value_heads": size.num_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": size.tied,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": size.depth,
            "embed_dim": size.vision_dim,
            "mlp_ratio": 4,
            "num_heads": size.vision_heads,
            "in_chans": 3,
            "hidden_size": size.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": list(size.mrope_section),
            **dict(size.rope_scaling),
        },
        "vocab_size": size.vocab_size,
    }


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int, dtype: str) -> None:
    """Two or more safetensors files and their index."""
    item = 4 if dtype == "F32" else 2
    sizes = {name: math.prod(shape) * item for name, shape in shapes.items()}
    total = sum(sizes.values())
    show = total > 1 << 28 and sys.stderr.isatty()
    limit = min(SHARD_BYTES, total * 9 // 10)
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > limit:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    done, start = 0, time.perf_counter()
    for i, names in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file_name)
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            end = offset + sizes[name]
            header[name] = {
                "dtype": dtype,
                "shape": list(shapes[name]),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file_name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for block in random_blocks(names, shapes, seed, dtype):
                file.write(block.data)
                done += block.nbytes
                if show:
                    seconds = time.perf_counter() - start
                    print(
                        f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB, {seconds:.0f} s",
                        end="",
                        file=sys.stderr,
                    )
    if show:
        print(file=sys.stderr)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def random_blocks(
    names: list[str], shapes: dict[str, tuple[int, ...]], seed: int, dtype: str
) -> Iterator[NDArray]:
    """The tensors' values in order, a few blocks ahead in threads; each block has its own seed."""

    def jobs() -> Iterator[tuple[str, int, int]]:
        for name in names:
            size = math.prod(shapes[name])
            for start in range(0, size, BLOCK_ELEMENTS):
                yield name, start, min(BLOCK_ELEMENTS, size - start)

    def make(job: tuple[str, int, int]) -> NDArray:
        name, start, count = job
        rng = np.random.Generator(np.random.SFC64([seed, start, *name.encode()]))
        values = rng.standard_normal(count, dtype=np.float32)
        mean, deviation = weight_statistics(name, shapes[name])
        return cast(values * np.float32(deviation) + np.float32(mean), dtype)

    with ThreadPoolExecutor(2) as pool:
        waiting = []
        for job in jobs():
            waiting.append(pool.submit(make, job))
            if len(waiting) > 4:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def weight_statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation that keep the activations of every layer around 1."""
    if len(shape) > 1:
        return 0.0, math.prod(shape[1:]) ** -0.5
    is_norm = "norm" in name or "ln_q" in name
    return (1.0, 0.1) if is_norm and name.endswith("weight") else (0.0, 0.1)


def cast(values: NDArray[np.float32], dtype: str) -> NDArray:
    """float32 -> the stored type; bfloat16 rounds to nearest even."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    return parser.parse_args(argv)


def main() -> None:
    """Make the checkpoint."""
    args = parse_args()
    print(make_checkpoint(args.folder, args.size, args.seed, dtype=args.dtype))


if __name__ == "__main__":
    main()
