"""What one run of one runtime is measured by."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from dataclasses import dataclass

QUESTION = "Describe this image in detail."
SYSTEM = "You are a helpful assistant."
RESULT = "FIGURES "  # starts the line in which a process tells its figures


@dataclass(frozen=True, slots=True)
class Task:
    """What every runtime does: a text for speed, a picture and a question for the whole way."""

    picture: str  # path of a PNG
    num_text_tokens: int  # of the prefilled text
    num_new_tokens: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One run; None is what a runtime does not tell."""

    vision_s: float | None = None  # picture read, resized and encoded
    prefill_tokens_per_s: float | None = None  # of text alone
    decode_tokens_per_s: float | None = None  # behind that text
    ttft_s: float | None = None  # picture and question to the first token, model loaded
    peak_bytes: float | None = None  # of the process with picture and question
    num_prompt_tokens: float | None = None  # of picture and question

    def merge(self, other: Figures) -> Figures:
        """These figures, and the other's where these have none."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Figures(**{k: theirs[k] if v is None else v for k, v in mine.items()})


@dataclass(frozen=True, slots=True)
class Run:
    """A finished process."""

    output: str  # stdout and stderr together
    peak_bytes: int
    wall_s: float


def run(command: list[str], stdin: str = "") -> Run:
    """Run a command to its end; the peak is the kernel's own, of this one process.

    The kernel counts a new process's peak from the memory of its parent: this one must stay small.

    Raises:
        RuntimeError: it failed; with the last line it wrote.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin)
    process.stdin.close()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{command[0]} exited with {process.returncode}: {last[-300:]}")
    return Run(output, usage.ru_maxrss * 1024, time.perf_counter() - start)


def run_worker(python: str, script: str, model: str, task: Task) -> Figures:
    """Run one of the worker scripts beside this file and read its figures."""
    done = run([python, script, model], json.dumps(dataclasses.asdict(task)))
    line = next(line for line in done.output.splitlines() if line.startswith(RESULT))
    figures = Figures(**json.loads(line.removeprefix(RESULT)))
    return dataclasses.replace(figures, peak_bytes=done.peak_bytes)
