"""Turn graphs for ONNX Runtime into graphs that one TensorRT accepts.

Read first `targets.py`, the table of what each TensorRT may be given, then `graph.py`, which goes
through a graph node by node with the rules in `norms.py`, `attention.py`, `matrices.py` and
`activations.py`. `source.py` opens a checkpoint or a bundle as graphs and weights,
`initializers.py` and `blocks.py` convert weights as a stream, `exporter.py` writes the bundle.

A new target is a row in `targets.py`; an operator that it lacks is a rule in the file of its
subject.
"""
