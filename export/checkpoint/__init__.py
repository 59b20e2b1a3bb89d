"""Read a checkpoint folder: sizes, settings, and where each tensor lies.

Read first `open.py` (the whole of a checkpoint) and `settings.py` (what decides its answers beside
the weights), then the reader of the file in question: `config.py`, `rope.py`, `pixels.py`,
`generation.py`. Readers give a `Found`: the value, and the file and key that each part of it came
from.

The rooms inside, lowest first: `keys/` (what becomes of every key), `files/`, `weights/`, `text/`,
`packed/` (AWQ, GPTQ, compressed-tensors), `adapters/` (LoRA). A new setting is read by the reader
of its file and has its rule in `keys/`. Nothing here knows a graph.
"""
