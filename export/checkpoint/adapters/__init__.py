"""Merge LoRA adapters into a checkpoint's tensors while they are read.

`config.py` reads adapter_config.json: which layers are updated, and how strongly. `merge.py` puts
the updates onto the tensors; the sum is made row by row when the weights are streamed, so a merged
model is never whole in memory.

Another kind of adapter is a reader beside `config.py`; keys that change results have a rule in
`export/checkpoint/keys/adapter.py`.
"""
