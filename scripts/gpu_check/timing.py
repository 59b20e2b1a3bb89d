"""A bundle at full size -> milliseconds of pictures, prompts and tokens, as the runtime runs them.

Wall time of the runtime's own calls: uploads, engines and the download of embeddings or logits are
in it; cutting pictures, tokenizing and choosing tokens are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .bundles import ModelName, find_bundle
from .config import Config
from .observe import Side
from .record import SkippedError, read_figures

NUM_WARMUPS = 3
DECODE_STEPS = 32


def measure_engines(config: Config, model: ModelName, precision: str) -> dict[str, Any]:
    """Of the engines on the GPU."""
    return measure_side(config, Side(find_bundle(config, model, precision), "tensorrt"))


def measure_onnxruntime(config: Config) -> dict[str, Any]:
    """Of ONNX Runtime's CUDA provider, on its own float graphs.

    Raises:
        SkippedError: it has none here.
    """
    providers = read_figures(config.work, "machine")["onnxruntime_providers"]
    if "CUDAExecutionProvider" not in providers:
        raise SkippedError(f"this onnxruntime has only {', '.join(providers)}")
    return measure_side(config, Side(find_bundle(config, "model", "float"), "cuda"))


def measure_side(config: Config, side: Side) -> dict[str, Any]:
    """Each figure's runs, in milliseconds; closes the side.

    `vision_ms` is by the picture's side in pixels, `decode_ms` is of one token.
    """
    try:
        vision = {str(each): time_vision(side, each, config.num_runs) for each in config.sides}
        prefill = time_prefill(side, config.prompt_tokens, config.num_runs)
        decode = time_decode(side, config.prompt_tokens)
        files = {name: record.bytes for name, record in side.manifest.files.items()}
        return {
            "providers": list(side.backend.providers),
            "notices": list(getattr(side.backend, "notices", ())),
            "vision_ms": vision,
            "prefill_ms": prefill,
            "decode_ms": decode,
            "decoder_weight_bytes": files.get("decoder.onnx.data", 0),
        }
    finally:
        side.close()


def time_vision(side: Side, pixels: int, num_runs: int) -> list[float]:
    """One square picture through the ViT."""
    from vlmedge.runtime.cli.memory_probe import make_picture

    picture = {"type": "image", "image": make_picture(pixels, pixels), "max_pixels": pixels**2}
    text = {"type": "text", "text": "What is in the picture?"}
    (visual,) = side.maker.make([{"role": "user", "content": [picture, text]}]).visuals
    return time_runs(
        lambda: side.backend.encode_images("vision", visual.pixel_values, visual.position_ids),
        num_runs,
    )


def time_prefill(side: Side, num_tokens: int, num_runs: int) -> list[float]:
    """A prompt of random tokens into an empty cache, in one call."""
    cache = side.backend.make_cache(1, num_tokens)
    call = side.backend.bind_decoder(cache, num_tokens)
    _fill(side, call, num_tokens)
    call.seqlens_k[...] = num_tokens - 1
    call.total_sequence_length[...] = num_tokens
    call.logit_index[...] = num_tokens - 1
    return time_runs(call.run, num_runs)


def time_decode(side: Side, num_cached: int, num_steps: int = DECODE_STEPS) -> list[float]:
    """Single tokens behind a prompt; what is in the cache does not matter to the time."""
    cache = side.backend.make_cache(1, num_cached + num_steps + NUM_WARMUPS)
    call = side.backend.bind_decoder(cache, 1)
    _fill(side, call, 1)
    call.logit_index[...] = 0
    lengths = iter(range(num_cached, num_cached + num_steps + NUM_WARMUPS))

    def step() -> None:
        length = next(lengths)
        call.seqlens_k[...] = length
        call.total_sequence_length[...] = length + 1
        call.position_ids[...] = length
        call.run()

    return time_runs(step, num_steps)


def time_runs(run: Callable[[], Any], num_runs: int) -> list[float]:
    """Milliseconds of each run but the first few."""
    milliseconds = []
    for _ in range(NUM_WARMUPS + num_runs):
        start = time.perf_counter()
        run()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds[NUM_WARMUPS:]


def _fill(side: Side, call: Any, num_tokens: int) -> None:
    ids = np.random.default_rng(0).integers(0, side.manifest.decoder.vocab_size, num_tokens)
    side.embeddings.gather(ids, call.inputs_embeds[0])
    call.position_ids[...] = np.arange(num_tokens)
