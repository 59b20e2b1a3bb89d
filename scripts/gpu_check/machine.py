"""This machine -> what it is and has: GPU, driver, packages, room."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

from .config import ROOT, Config
from .importable import find_version

# module -> what it is needed for
NEEDED = {
    "numpy": "everything",
    "PIL": "pictures",
    "onnx": "graphs",
    "ml_dtypes": "export",
    "onnxruntime": "the reference, and calibration",
    "tokenizers": "prompts",
}
PACKED = ("tensorrt_rtx", "onnx_ir", "jinja2", "jiwer", "rapidfuzz")  # the pack has them
PEERS = ("torch", "transformers")  # not imported here: that takes seconds


def describe(config: Config) -> dict[str, Any]:
    """Look around.

    Raises:
        ValueError: packages are missing that nothing can do without, or there is no GPU.
    """
    versions, missing = {}, {}
    for name in (*NEEDED, *PACKED):
        try:
            module = import_module(name)
            versions[name] = str(getattr(module, "__version__", None) or find_version(name))
        except Exception as error:  # a broken package may raise anything
            missing[name] = f"{type(error).__name__}: {error}"
    for name in PEERS:
        if (version := find_version(name)) is None:
            missing[name] = "not installed"
        else:
            versions[name] = version
    if lacking := [name for name in NEEDED if name in missing]:
        reasons = "; ".join(f"{name} (for {NEEDED[name]}: {missing[name]})" for name in lacking)
        raise ValueError(f"Python packages are missing: {reasons}")
    gpu = None if config.dry_run else find_gpu()
    return {
        "gpu": gpu,
        "driver": read_driver(),
        "cpu": read_cpu(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(config.work).free / 2**30, 1),
        "python": platform.python_version(),
        "commit": read_commit(),
        "versions": versions,
        "missing": missing,
        "onnxruntime_providers": import_module("onnxruntime").get_available_providers(),
    }


def find_gpu() -> dict[str, Any]:
    """The GPU that the engine runtime would use.

    Raises:
        ValueError: there is none.
    """
    from vlmedge.runtime.backends.trt.cuda_driver import CudaDriver
    from vlmedge.runtime.errors import BackendError

    try:
        driver = CudaDriver()
    except BackendError as error:
        raise ValueError(f"{error}; without a GPU ask for --dry-run") from error
    _, total = driver.measure_memory()
    return {"name": driver.gpu.name, "sm": driver.gpu.sm, "memory_gib": round(total / 2**30, 1)}


def read_driver() -> str | None:
    """The version of NVIDIA's driver, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def read_cpu() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def read_commit() -> str | None:
    """Of the checkout; None: it came without its history."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
