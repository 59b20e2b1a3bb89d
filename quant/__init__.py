"""A float bundle -> a quantized one, and the proof that it may ship; without torch."""

from ..runtime.telemetry import turn_off

turn_off("onnxruntime", "huggingface_hub", "ray")
