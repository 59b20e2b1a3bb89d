"""TensorRT-RTX and this GPU -> the target whose engines run, found out on the sample.

Each is tried in a process of its own: an engine that doesn't suit a GPU may end it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from .bundles import find_bundle
from .config import Config, read_config
from .record import read_figures

TRY_S = 60.0


def find_target(config: Config, precision: str) -> dict[str, Any]:
    """Try targets until one runs.

    Raises:
        RuntimeError: none does, or TensorRT-RTX is not there: with every reason.
    """
    from vlmedge.export.engines.adapter import open_tensorrt

    from .rtx_target import list_targets

    gpu = read_figures(config.work, "machine")["gpu"]
    tensorrt = open_tensorrt("tensorrt_rtx")
    tried: dict[str, str] = {}
    for target in list_targets(gpu["sm"], tensorrt.list_capabilities()):
        reason = try_target(config.work, precision, target)
        if reason is None:
            return {"target": target, "tried": tried, "version": tensorrt.version}
        tried[target] = reason
    reasons = "; ".join(f"{target}: {reason}" for target, reason in tried.items())
    raise RuntimeError(f"TensorRT-RTX {tensorrt.version} does not run on {gpu['name']}: {reasons}")


def try_target(work: Path, precision: str, target: str) -> str | None:
    """None: its engines run; else why not."""
    command = [sys.executable, "-m", "gpu_check.probe", str(work), precision, target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRY_S)
    except subprocess.TimeoutExpired:
        return f"no end after {TRY_S:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1][:500]


def main() -> None:
    """Build the sample's engines for one target and run both graphs once."""
    from vlmedge.export.engines.build import build_engines

    from .compare import list_questions
    from .observe import Side
    from .rtx_target import chosen_target

    work, precision, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    bundle = find_bundle(read_config(work), "sample", precision)
    with chosen_target(target):
        build_engines(bundle, builder="tensorrt_rtx")
    side = Side(bundle, "tensorrt")
    seen = side.observe(list_questions()[0], num_tokens=2)
    side.close()
    if not seen.is_finite:
        raise SystemExit("engines run, but give numbers that are not finite")


if __name__ == "__main__":
    main()
