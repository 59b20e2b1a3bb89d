"""Switch off what other libraries report to their makers.

ONNX Runtime 1.32, for one, looks up its vendor's collector some seconds after it was imported and
again and again, and keeps a device id, a database and a session file under the user's cache and
TMPDIR. It reads its switch once, while it is imported, so the switch must be set before: each of
our packages does that first of all. What the user has set, an empty string too, stays.
"""

from __future__ import annotations

import os
import sys

# library -> (environment variable, the value that turns its reports off)
SWITCHES = {
    "onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"),
    # No reports of its own, but each download would tell what else is installed
    "huggingface_hub": ("HF_HUB_DISABLE_TELEMETRY", "1"),
    # Nightly builds report from ray.init, released ones from `ray start`
    "ray": ("RAY_USAGE_STATS_ENABLED", "0"),
}
LATE_NOTICE = (
    "onnxruntime was imported before vlmedge and may send telemetry: set ORT_DISABLE_TELEMETRY=1, "
    "or import vlmedge.runtime first"
)

_late: set[str] = set()  # libraries that were there before their switch


def turn_off(*libraries: str) -> None:
    """Set the switches of some libraries, in this process and the ones it starts.

    Args:
        libraries: keys of `SWITCHES`; a switch that is in the environment is left as it is.
    """
    for library in libraries:
        name, value = SWITCHES[library]
        if name in os.environ:
            continue
        if library in sys.modules:
            _late.add(library)
        os.environ[name] = value


def list_notices() -> tuple[str, ...]:
    """What the user should know: that ONNX Runtime had been imported before it could be asked."""
    return (LATE_NOTICE,) if "onnxruntime" in _late else ()
