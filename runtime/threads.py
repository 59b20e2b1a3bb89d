"""Count CPU cores, and limit the threads a caller may ask for."""

from __future__ import annotations

import os

# More threads than cores can be meant, as where they wait for memory; a slip of the keyboard can't:
# ONNX Runtime would start them all, and the machine would stand still
THREADS_PER_CPU = 4
ALWAYS_ALLOWED = 16


def count_cpus() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads() -> int:
    """The most threads that are started for one session."""
    return max(ALWAYS_ALLOWED, THREADS_PER_CPU * count_cpus())


def check_num_threads(num_threads: int | None) -> None:
    """See that a number of threads is one that this machine can bear; None is.

    Raises:
        ValueError: it is no positive integer, or too large.
    """
    if num_threads is None:
        return
    if type(num_threads) is not int or num_threads < 1:
        raise ValueError(f"num_threads is {num_threads!r}, needed a positive integer or None")
    if num_threads > limit_threads():
        raise ValueError(
            f"num_threads is {num_threads}, needed at most {limit_threads()}: this process may use "
            f"{count_cpus()} CPU cores"
        )
