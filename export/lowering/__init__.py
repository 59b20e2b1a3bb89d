"""Graphs of the onnxruntime flavor -> graphs that a given TensorRT's parser accepts."""
