"""Say for every key of a checkpoint's files whether it is honoured, refused or without effect.

Read first `rules.py`, the three kinds of rule. Then one file for each file of a checkpoint:
`config.py`, `pixels.py`, `tokenizer.py`, `generation.py`, `quantization.py`, `adapter.py`.
`table.py` makes the table in docs/checkpoints.md of them.

A key that transformers comes to know is a row in its file's table; a test compares the tables with
transformers' own classes. Imports no other room.
"""
