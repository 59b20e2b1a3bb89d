"""Find every tensor of a checkpoint's safetensors files, and load none.

Read first `tensors.py` (the tensors under the hub's names), `tensor_source.py` (where one lies, and
the low-rank updates that are added to its rows when they are read) and `safetensors_header.py`.
`files.py` chooses the weight files as transformers does, `wrapped_names.py` recognizes names that a
wrapped model gave, `same_values.py` compares two stored tensors.

Another container of weights would be a header beside `safetensors_header.py`.
"""
