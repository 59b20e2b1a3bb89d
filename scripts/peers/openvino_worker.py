"""OpenVINO GenAI in a process of its own: model folder as argument, the task as JSON on stdin."""

from __future__ import annotations

import json
import sys

import numpy as np
from figures import QUESTION, RESULT
from PIL import Image

# Importing openvino reports to its maker, without a switch; without this package it does not
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
import openvino_genai  # noqa: E402

MS = 1000


def main() -> None:
    """Measure and print."""
    task = json.loads(sys.stdin.read())
    pipeline = openvino_genai.VLMPipeline(
        sys.argv[1], "CPU", INFERENCE_NUM_THREADS=task["num_threads"]
    )
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = task["num_new_tokens"]
    config.do_sample = False
    config.ignore_eos = True
    if task["picture"]:
        pixels = np.asarray(Image.open(task["picture"]).convert("RGB"))[None]
        result = pipeline.generate(
            QUESTION, images=[openvino.Tensor(pixels)], generation_config=config
        )
        metrics = result.perf_metrics
        figures = {
            "vision_s": metrics.get_prepare_embeddings_duration().mean / MS,
            "ttft_s": metrics.get_ttft().mean / MS,
            "num_prompt_tokens": metrics.get_num_input_tokens(),
        }
    else:
        text = "".join(str(7 * i % 10) for i in range(task["num_text_tokens"]))
        warm_up = openvino_genai.GenerationConfig()
        warm_up.max_new_tokens = 2
        pipeline.generate("5", generation_config=warm_up)
        metrics = pipeline.generate(text, generation_config=config).perf_metrics
        figures = {
            "prefill_tokens_per_s": metrics.get_num_input_tokens() * MS / metrics.get_ttft().mean,
            "decode_tokens_per_s": MS / metrics.get_tpot().mean,
        }
    print(RESULT + json.dumps(figures))


if __name__ == "__main__":
    main()
