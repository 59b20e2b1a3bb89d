"""Measure what the quantization of each layer does to the whole model.

Read first `measure.py`, one run of `vlmedge sensitivity`, then `stage_meter.py`, which walks the
stages and gives a row for every layer, and `variants.py`, the model with any choice of layers
quantized. `mixer.py` composes a stage from layers that were each quantized once; `damage.py` is the
distance from the float model's outputs; finished rows are kept on the disk by `rows.py`.

Who owns what is drawn in docs/architecture.md. Another measure of damage is a field of `damage.py`.
"""
