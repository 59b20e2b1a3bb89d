"""Run the graphs of a bundle behind one protocol.

Read first `backend.py`, the protocol: encode pictures, make a cache, run a decoder step. Then
`open_backend.py`, which chooses a backend for a bundle and this machine. `kv_cache.py` decides how
much room an answer needs before anything is allocated, `cache_mask.py` computes what graphs for
TensorRT ask of the host.

Each engine is a folder, `ort/` for ONNX Runtime and `trt/` for TensorRT; a second CPU engine would
be a folder beside them and a line in `open_backend.py`. The folders import the files here, except
`open_backend.py`, and never each other.
"""
