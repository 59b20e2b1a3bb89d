"""A checkpoint folder -> what it says, checked: sizes, settings, and where each tensor lies.

Read first `open.py` (the whole of a checkpoint), then the reader of the file in question:
`config.py`, `rope.py`, `pixels.py`, `tokenizer.py`, `chat_template.py`, `generation.py`, and for
weights `safetensors_header.py`, `tensors.py`, `shapes.py`. Readers give a `Found`: the value, and
from which file and key each part of it came (`origin.py`). Every key that transformers knows has a
`KeyRule` (`key_rules.py`): honoured, refused by name, or without effect. A new setting is read by
the reader of its file and has its rule there. Imports nothing of the graphs.
"""
