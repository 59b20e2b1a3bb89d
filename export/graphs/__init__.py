"""Write a model's graphs for ONNX Runtime, and the data files of their weights.

Read first `vision.py` (the ViT) and `decoder.py` (embeddings, positions and a KV cache to logits),
then `layers.py`, the few kinds of layers that both are made of, and `graph_builder.py`, which holds
a graph under construction. `weights.py` reads a tensor as it lies in a
bundle: cast, or packed block by block; `data_file.py` lays the weights out and streams them to
`*.onnx.data`; `carried.py` takes over layers that a checkpoint has packed.

A new model family brings a graph beside `vision.py` or `decoder.py` (docs/extend.md). Graphs for
TensorRT are made from these in `export/lowering/`.
"""
