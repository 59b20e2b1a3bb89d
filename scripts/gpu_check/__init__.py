"""The engines of a bundle on one GPU machine without network -> whether they are right, how fast.

A pack of TensorRT-RTX made elsewhere (scripts/pack_tensorrt_rtx.py) and this checkout are all that
is brought; scripts/gpu_check.sh does the rest in steps that go on where a run before them ended.
"""

import os

# Before anything here imports onnxruntime, which would report to its maker; vlmedge does the same
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
