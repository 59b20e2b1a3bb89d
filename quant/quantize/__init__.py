"""Turn a float bundle, a recipe and real pictures into a quantized bundle.

Read first `quantize.py`, the whole way in one function, then `plan.py` (what becomes of each layer,
and why), `model_quantizer.py` and `stage_quantizer.py` (calibrate and round, stage by stage) and
`linear_nodes.py` (the nodes of a quantized layer). `input_range.py` finds the scale of an
activation, `rewrite.py` makes the new graph, `bundle.py` and `data_file.py` write it,
`work_folder.py` keeps finished stages for a run that was stopped.

A new format of a layer is a row of `linear_nodes.py` and a choice in `stage_quantizer.py`; its
arithmetic goes to `quant/rounding/`.
"""
