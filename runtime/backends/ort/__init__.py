"""Run a bundle's graphs in ONNX Runtime.

Read first `backend.py`, which fulfils the protocol of `runtime/backends/backend.py`, then
`session.py`, which makes a session of a graph's file: provider, threads, options. `target_call.py`
runs graphs that were written for TensorRT on the CPU, for checks of a bundle before it is built.

`exact_products.py` keeps INT8 products exact on CPUs whose instructions saturate. Only `backend.py`
and `session.py` know onnxruntime. A new execution provider is an option of `session.py`; what its
graphs need of the host is a call beside `target_call.py`.
"""
