"""Turn arrays into codes, scales and ranges.

The formats are `int8.py`, `fp8.py` and `weight_only.py` (blocks of INT4 and INT8). Ranges of
activations come from `histogram.py` and `ranges.py`, by way of `activations.py`, which keeps what
calibration saw of one layer. `gptq.py`, `awq.py` and `smooth.py` choose better codes and scales
than nearest rounding. Read first `int8.py`, then `ranges.py`.

Pure functions on numpy arrays: nothing here knows a graph, a recipe or a bundle. A new format or
method of rounding is a file here, and then a choice in `quant/recipe/`.
"""
