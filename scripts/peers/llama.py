"""llama.cpp's own tools: llama-bench for text, llama-mtmd-cli for the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .figures import QUESTION, SYSTEM, Figures, Task, run


def measure_text(tools: Path, model: str, task: Task) -> Figures:
    """Speed of a text's prefill, and of decoding behind it."""
    common = [str(tools / "llama-bench"), "-m", model, "-t", str(task.num_threads), "-o", "json"]
    text, new = str(task.num_text_tokens), str(task.num_new_tokens)
    prefill = run([*common, "-r", "1", "-p", text, "-n", "0"])
    decode = run([*common, "-r", "1", "-p", "0", "-n", new, "-d", text])
    return Figures(
        prefill_tokens_per_s=_read_speed(prefill.output),
        decode_tokens_per_s=_read_speed(decode.output),
    )


def measure_picture(tools: Path, model: str, mmproj: str, task: Task) -> Figures:
    """A picture and a question, from reading the file to the last token."""
    done = run(
        [
            str(tools / "llama-mtmd-cli"),
            *("-m", model, "--mmproj", mmproj, "--image", task.picture, "-p", QUESTION),
            *("-sys", SYSTEM, "--chat-template", "chatml", "--temp", "0", "--ignore-eos"),
            *("-n", str(task.num_new_tokens), "-t", str(task.num_threads), "-c", "4096"),
            *("--perf", "--verbosity", "4"),
        ]
    )
    prompt = re.search(r"prompt eval time = +([\d.]+) ms / +(\d+) tokens", done.output)
    if prompt is None:
        raise RuntimeError("llama-mtmd-cli told no prompt eval time")
    encoded = re.findall(r"(?:slice encoded in|batch encoding done in) (\d+) ms", done.output)
    return Figures(
        vision_s=sum(map(int, encoded)) / 1000 if encoded else None,
        ttft_s=float(prompt[1]) / 1000,
        peak_bytes=done.peak_bytes,
        num_prompt_tokens=int(prompt[2]),
    )


def _read_speed(output: str) -> float:
    """Tokens per second of the one test in llama-bench's JSON, which other lines may surround."""
    (test,) = json.loads(output[output.index("[\n") : output.rindex("]") + 1])
    return float(test["avg_ts"])
