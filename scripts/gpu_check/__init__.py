"""The engines of a bundle on one GPU machine without network -> whether they are right, how fast.

A pack of TensorRT-RTX made elsewhere (scripts/pack_tensorrt_rtx.py) and this checkout are all that
is brought; scripts/gpu_check.sh does the rest in steps that go on where a run before them ended.
"""
