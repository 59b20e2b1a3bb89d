"""The same checkpoint in torch on the same GPU: transformers, and the matrices alone.

transformers launches each kernel by itself. The matrices of one token alone, recorded as one CUDA
graph in fp16, show what is left when nothing else costs anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .bundles import find_checkpoint
from .ceilings import time_on_gpu
from .config import Config
from .record import SkippedError
from .timing import DECODE_STEPS, NUM_WARMUPS, time_runs


def measure(config: Config) -> dict[str, Any]:
    """Milliseconds of each run, as `timing.measure_side` names them.

    Raises:
        SkippedError: torch is not there, or sees no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise SkippedError(f"torch is not installed: {error}") from error
    if not torch.cuda.is_available():
        raise SkippedError("torch sees no GPU")
    figures: dict[str, Any] = {"torch": torch.__version__}
    with torch.inference_mode():
        figures["matrices_decode_ms"] = 1000 * time_on_gpu(torch, record_matrices(torch, config))
        try:
            figures |= measure_transformers(torch, config, "cuda")
        except Exception as error:  # another version of it may want other arguments
            figures["without_transformers"] = f"{type(error).__name__}: {error}"
    return figures


def record_matrices(torch: Any, config: Config) -> Callable[[], None]:
    """All matrices of the decoder times one row each, as one launch."""
    from vlmedge.export.checkpoint.config import read_model_spec

    spec = read_model_spec(find_checkpoint(config, "model"))
    decoder = spec.decoder
    width, mlp = decoder.hidden_size, spec.decoder_mlp_size
    heads = decoder.num_heads * decoder.head_dim
    shared = decoder.num_kv_heads * decoder.head_dim
    shapes = [(width, heads + 2 * shared), (heads, width), (width, 2 * mlp), (mlp, width)]
    all_shapes = [*shapes * decoder.num_layers, (width, decoder.vocab_size)]

    def make(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.float16, device="cuda") * 0.01

    pairs = [(make(1, rows), make(columns, rows).t()) for rows, columns in all_shapes]

    def multiply() -> None:
        for row, matrix in pairs:
            torch.matmul(row, matrix)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARMUPS):
            multiply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply()

    def replay() -> None:
        assert pairs  # the graph reads them by address: they must live as long
        graph.replay()

    return replay


def measure_transformers(torch: Any, config: Config, device: str) -> dict[str, Any]:
    """ViT, prompt and tokens of transformers in fp16, sdpa."""
    import transformers

    model: Any = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(config, "model"), dtype=torch.float16
    )
    model = model.to(device).eval()

    def synchronized(run: Callable[[], Any]) -> Callable[[], None]:
        def both() -> None:
            run()
            if device == "cuda":
                torch.cuda.synchronize()

        return both

    vision = {}
    for side in config.sides:
        grid = torch.tensor([[1, side // 14, side // 14]], device=device)
        num_patches = int(grid.prod())
        pixels = torch.randn(num_patches, 1176, dtype=torch.float16, device=device)
        run = synchronized(
            lambda pixels=pixels, grid=grid: model.model.visual(pixels, grid_thw=grid)
        )
        vision[str(side)] = time_runs(run, config.num_runs)
    length = config.prompt_tokens
    # Below the special ids: no picture stands in the prompt.
    ids = torch.randint(0, 1000 if config.size != "tiny" else 200, (1, length), device=device)

    def read_prompt() -> Any:
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)

    prefill = time_runs(synchronized(read_prompt), config.num_runs)
    state = {"cache": read_prompt().past_key_values, "length": length}

    def read_token() -> None:
        place = torch.tensor([state["length"]], device=device)
        done = model(
            input_ids=ids[:, :1],
            past_key_values=state["cache"],
            position_ids=place.expand(3, 1, 1),
            cache_position=place,
            use_cache=True,
        )
        state["cache"], state["length"] = done.past_key_values, state["length"] + 1

    decode = time_runs(synchronized(read_token), DECODE_STEPS)
    return {
        "transformers": transformers.__version__,
        "vision_ms": vision,
        "prefill_ms": prefill,
        "decode_ms": decode,
    }
