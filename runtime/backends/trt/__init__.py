"""Run a bundle's TensorRT engines, with the KV cache on the GPU.

Read first `backend.py`, which fulfils the protocol of `runtime/backends/backend.py`, and
`choose.py`, which finds the engine set that fits this GPU, this TensorRT and these graphs.
`engine_set.py` is the contract with the builder (`engines.json`); `decoder_call.py`,
`device_cache.py`, `memory.py` and `step_graph.py` are one decoder call on the device.

CUDA and TensorRT are reached through two protocols, `driver.py` and `engine.py`; only
`cuda_driver.py` and `tensorrt_engine.py` know the libraries, so that all else is tested without
a GPU.
"""
