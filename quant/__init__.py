"""Weights -> fewer bits: the arithmetic of quantization, without torch."""
