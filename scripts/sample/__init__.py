"""The sample reader: pictures drawn by rule, a small Qwen2-VL trained on them, a hub checkpoint."""
