"""transformers (bfloat16, sdpa) in a process of its own: checkpoint as argument, task on stdin."""

from __future__ import annotations

import json
import sys
import time

import torch
from figures import QUESTION, RESULT, SYSTEM
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MAX_NEW_TOKENS = 8  # four a second: more would only take longer


def main() -> None:
    """Measure and print."""
    task = json.loads(sys.stdin.read())
    torch.set_num_threads(task["num_threads"])
    model = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    vision_start = time.perf_counter()
    num_pads, inputs = 0, {}
    if task["picture"]:
        image = Image.open(task["picture"]).convert("RGB")
        inputs = dict(Qwen2VLImageProcessorPil()(images=[image], return_tensors="pt"))
        num_pads = int(inputs["image_grid_thw"].prod()) // 4
        with torch.inference_mode():
            model.model.visual(
                inputs["pixel_values"].to(torch.bfloat16), grid_thw=inputs["image_grid_thw"]
            )
        pads = "<|vision_start|>" + "<|image_pad|>" * num_pads + "<|vision_end|>"
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{pads}{QUESTION}"
    else:
        text = "".join(str(7 * i % 10) for i in range(task["num_text_tokens"]))
    vision_s = time.perf_counter() - vision_start
    ids = tokenizer(text, return_tensors="pt").input_ids
    inputs |= {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }
    generate = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    seconds = []
    with torch.inference_mode():
        for num_new in (1, 1 + MAX_NEW_TOKENS):
            start = time.perf_counter()
            model.generate(**inputs, max_new_tokens=num_new, **generate)
            seconds.append(time.perf_counter() - start)
    first, whole = seconds
    if task["picture"]:
        figures = {"vision_s": vision_s, "ttft_s": first, "num_prompt_tokens": ids.shape[1]}
    else:
        figures = {
            "prefill_tokens_per_s": ids.shape[1] / first,
            "decode_tokens_per_s": MAX_NEW_TOKENS / max(whole - first, 1e-9),
        }
    print(RESULT + json.dumps(figures))


if __name__ == "__main__":
    main()
