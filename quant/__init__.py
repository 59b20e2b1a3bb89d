"""A float bundle -> a quantized one, and the proof that it may ship; without torch."""
