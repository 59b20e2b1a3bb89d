"""Ask one question in a fresh process and measure its load time and peak memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from ..peak_memory import read_peak_bytes

QUESTION = "What is in the picture?"


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What the other process does: load, then one answer about a picture of this size."""

    bundle: str
    residency: str
    width: int
    height: int
    num_new_tokens: int
    providers: tuple[str, ...] | None
    num_threads: int | None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Seconds from `Model.load` to all sessions made, and the peak of resident bytes."""

    load_s: float
    peak_bytes: int


def probe(request: ProbeRequest) -> ProbeResult:
    """Run one request in a fresh Python.

    Raises:
        BackendError: the process failed (its last line is told) or was killed.
    """
    command = [sys.executable, "-m", "vlmedge.runtime.cli.memory_probe"]
    done = subprocess.run(
        command,
        input=json.dumps(dataclasses.asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode < 0:
            reason = f"killed by signal {-done.returncode}; out of memory?"
        raise BackendError(f"the measuring process failed: {reason}")
    return ProbeResult(**json.loads(done.stdout.splitlines()[-1]))


def make_picture(width: int, height: int) -> NDArray[np.uint8]:
    """Noise on a gradient, uint8[height, width, 3]: the same every time, no two patches equal."""
    noise = np.random.default_rng(0).integers(0, 64, (height, width, 3), np.uint8)
    rows = np.linspace(0, 96, height, dtype=np.uint8)[:, None, None]
    columns = np.linspace(0, 95, width, dtype=np.uint8)[None, :, None]
    return noise + rows + columns


def main() -> None:
    """Read a ProbeRequest as JSON from stdin, print the ProbeResult as one line."""
    from ..model import Model
    from ..options import GenerationOptions

    raw: dict[str, Any] = json.loads(sys.stdin.read())
    request = ProbeRequest(**raw)
    options = GenerationOptions(
        max_new_tokens=request.num_new_tokens, ignore_eos=True, ignore_defaults=True
    )
    start = time.perf_counter()
    with Model.load(
        request.bundle,
        providers=request.providers,
        num_threads=request.num_threads,
        residency="one" if request.residency == "one" else "all",
    ) as model:
        load_s = time.perf_counter() - start
        picture = make_picture(request.width, request.height)
        answer = model.answer(QUESTION, [picture], options=options)
        result = ProbeResult(load_s + answer.timings.load_s, read_peak_bytes())
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
