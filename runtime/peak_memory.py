"""Read the most memory that this process ever held."""

from __future__ import annotations

import sys
from pathlib import Path


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
