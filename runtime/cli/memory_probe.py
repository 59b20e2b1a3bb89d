"""One question in a process of its own -> the time to load and the most memory it ever held."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BackendError


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


def read_peak_bytes() -> int:
    """The most memory this process ever had resident, mapped files included.

    Linux's VmHWM starts at 0 with the program; getrusage would inherit the parent's peak.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows, which has no /proc either: an ImportError says so

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Read a ProbeRequest as JSON from stdin, print the ProbeResult as one line."""
    from ..model import Model
    from ..options import GenerationOptions
    from .bench import QUESTION, make_picture

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
