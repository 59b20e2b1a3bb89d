"""Quantize a float bundle and prove that the result may ship, without torch."""

from ..runtime.telemetry import turn_off

turn_off("onnxruntime", "huggingface_hub", "ray")
