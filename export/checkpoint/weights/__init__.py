"""Find every tensor of a checkpoint's safetensors files, and load none.

Read first `tensors.py` (the tensors under the hub's names) and `safetensors_header.py` (where each
lies in its file). `files.py` chooses the weight files as transformers does, `wrapped_names.py`
recognizes names that a wrapped model gave, `same_values.py` compares two stored tensors,
`low_rank.py` adds a low-rank update while rows are read.

Another container of weights would be a header beside `safetensors_header.py`.
"""
