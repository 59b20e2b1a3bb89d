"""A checkpoint folder -> what it says, checked: sizes, settings, and where each tensor lies.

Read first `open.py` (the whole of a checkpoint) and `settings.py` (what decides its answers beside
the weights), then the reader of the file in question: `config.py`, `rope.py`, `pixels.py`,
`tokenizer.py`, `chat_template.py`, `generation.py`; for weights `safetensors_header.py`,
`tensors.py`, `shapes.py`; for packed ones `quantization_config.py` and `packed_layers.py`, for
adapters `adapters.py`. Readers give a `Found`: the value, and from which file and key each part of
it came (`origin.py`). Every key that transformers knows has a `KeyRule` (`key_rules.py`): honoured,
refused by name, or without effect. A new setting is read by the reader of its file and has its rule
there. Imports nothing of the graphs.
"""
