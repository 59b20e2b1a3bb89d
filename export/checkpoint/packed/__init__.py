"""Read layers that a checkpoint has already quantized: AWQ, GPTQ, compressed-tensors.

Read first `layers.py` (the packed layers among a checkpoint's tensors), `config.py` (how they are
packed, or a refusal by name) and `matrix.py`, the one shape that all formats become: codes, scales,
zero points. One file reads each format: `awq.py`, `gptq.py`, `compressed.py`.

Another format is a reader beside them and a row in `config.py`. How a packed layer gets into a
graph is `export/graphs/carried.py`.
"""
