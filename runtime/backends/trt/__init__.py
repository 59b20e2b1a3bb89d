"""TensorRT engines -> answers: the second backend, beside ONNX Runtime's."""
