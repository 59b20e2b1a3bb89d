"""This GPU -> the bytes it copies and the products it computes in a second: what nothing exceeds.

Copies go through the runtime's own driver interface and, where torch is, through torch; products
are torch's, 8192 x 8192 x 8192 on random numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .config import Config

COPY_BYTES = 1 << 30
ROW_BYTES = 1 << 20  # a copy is made of rows, as the cache's are
SIDE = 8192
NUM_WARMUPS, NUM_RUNS = 3, 10


def measure(config: Config) -> dict[str, Any]:
    """Bandwidth in bytes/s (read and written both count) and rates in FLOP/s, by method."""
    del config
    bandwidth: dict[str, float] = {"driver": measure_driver_copy()}
    rates: dict[str, float] = {}
    errors: dict[str, str] = {}
    try:
        import torch
    except ImportError as error:
        return _make_figures(bandwidth, rates, {"torch": str(error)})
    if not torch.cuda.is_available():
        return _make_figures(bandwidth, rates, {"torch": "it sees no GPU"})
    bandwidth["torch"] = measure_torch_copy(torch)
    for name, make in PRODUCTS.items():
        try:
            seconds = time_on_gpu(torch, make(torch))
        except Exception as error:  # a type that this GPU or torch has no product for
            errors[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        rates[name] = 2 * SIDE**3 / seconds
    return _make_figures(bandwidth, rates, errors)


def measure_driver_copy() -> float:
    """Bytes a second of a copy on the device, read and written."""
    from vlmedge.runtime.backends.trt.cuda_driver import CudaDriver

    driver = CudaDriver()
    free, _ = driver.measure_memory()
    num_rows = min(COPY_BYTES, free // 4) // ROW_BYTES
    source, target = (driver.malloc(num_rows * ROW_BYTES) for _ in range(2))
    stream = driver.make_stream()
    try:
        seconds = []
        for _ in range(NUM_WARMUPS + NUM_RUNS):
            driver.synchronize(stream)
            start = time.perf_counter()
            driver.copy_rows(target, ROW_BYTES, source, ROW_BYTES, ROW_BYTES, num_rows, stream)
            driver.synchronize(stream)
            seconds.append(time.perf_counter() - start)
    finally:
        driver.free(source)
        driver.free(target)
        driver.destroy_stream(stream)
    return 2 * num_rows * ROW_BYTES / statistics.median(seconds[NUM_WARMUPS:])


def measure_torch_copy(torch: Any) -> float:
    """The same through torch."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / time_on_gpu(torch, lambda: target.copy_(source))


def time_on_gpu(torch: Any, run: Callable[[], Any], num_runs: int = NUM_RUNS) -> float:
    """Median seconds of something on the current stream, by events."""
    for _ in range(NUM_WARMUPS):
        run()
    seconds = []
    for _ in range(num_runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def _multiply_halves(torch: Any, dtype: Any) -> Callable[[], Any]:
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device="cuda") for _ in range(2))
    return lambda: torch.matmul(a, b)


def _multiply_int8(torch: Any) -> Callable[[], Any]:
    a, b = (
        torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8, device="cuda") for _ in range(2)
    )
    return lambda: torch._int_mm(a, b.t())


def _multiply_fp8(torch: Any) -> Callable[[], Any]:
    a, b = (
        torch.randn(SIDE, SIDE, device="cuda").clamp(-3, 3).to(torch.float8_e4m3fn)
        for _ in range(2)
    )
    one = torch.ones((), dtype=torch.float32, device="cuda")
    out = torch.bfloat16
    # The fastest way there is: sums of fewer bits than a float32 has.
    return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=out, use_fast_accum=True)


PRODUCTS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "fp16": lambda torch: _multiply_halves(torch, torch.float16),
    "bf16": lambda torch: _multiply_halves(torch, torch.bfloat16),
    "int8": _multiply_int8,
    "fp8": _multiply_fp8,
}


def _make_figures(
    bandwidth: dict[str, float], rates: dict[str, float], errors: dict[str, str]
) -> dict[str, Any]:
    return {"bytes_per_s": bandwidth, "flops_per_s": rates, "errors": errors}
