"""Run an installed vlmedge on the sample, and list what it prints and writes as facts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .file import Facts, Fingerprint, FingerprintError, Scalar
from .runs import (
    CHECKPOINT,
    DATA,
    GATE,
    GATE_TEXT,
    NO_DEVICES,
    Run,
    Words,
    list_products,
    list_sources,
)

SAMPLES = Path(__file__).resolve().parents[2] / "samples"

# Values that differ between two runs of the same code, by command; [] is every item of a list.
# Nothing is dropped of manifests and graphs: they hold vlmedge's version, which has to be equal.
DROPPED = {
    "export": {"seconds": "how long it took"},
    "quantize": {"seconds": "how long it took", "peak_bytes": "measured memory"},
    "check": {
        "result.speed[].reference_runs[]": "measured times and memory",
        "result.speed[].got_runs[]": "measured times and memory",
    },
    "plan": {},
}

# How many threads numpy's libraries start: a sum in another order has other last digits
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Of the caller's environment: the first two would let other code in, the third would have every
# run compile every module anew, the last prints tracebacks
UNSET_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VLMEDGE_DEBUG")


class Command:
    """An installed vlmedge, run in one folder with one environment."""

    def __init__(self, program: Path, folder: Path) -> None:
        """Take the program as it is; `folder` holds the inputs, and gets what is written."""
        self.program, self.folder = program, folder
        kept = {name: text for name, text in os.environ.items() if name not in UNSET_VARIABLES}
        self.environment = kept | dict.fromkeys(THREAD_VARIABLES, "1")
        # Compiled modules of either checkout go to neither
        self.environment |= {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "HF_HUB_OFFLINE": "1"}

    def call(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [self.program, *args],
            cwd=self.folder,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    def read_version(self) -> str:
        """The version that it prints, which also says whether it runs at all."""
        done = self.call("--version")
        if done.returncode:
            raise FingerprintError(f"{self.program} --version failed: {last_line(done.stderr)}")
        return done.stdout.strip()

    def complete(self, command: str, option: str) -> list[str]:
        """The values that a shell offers after `vlmedge COMMAND OPTION`."""
        typed = f"vlmedge {command} {option} "
        done = self.call(_VLMEDGE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD="3")
        words = done.stdout.split()
        if not words:
            raise FingerprintError(f"{self.program} completes {typed.strip()} with nothing")
        return words

    def list_words(self) -> Words:
        """Everything that is to be covered."""
        devices = self.complete("plan", "--device")
        return Words(
            weights=self.complete("export", "--weights"),
            recipes=self.complete("quantize", "--recipe"),
            targets=self.complete("export", "--target"),
            dtypes=self.complete("export", "--dtype"),
            devices=[name for name in devices if name not in NO_DEVICES],
        )


def record(program: Path, parts: Sequence[str], num_jobs: int) -> Fingerprint:
    """Run everything that the parts need, and read what comes out.

    Raises:
        FingerprintError: a command that has to succeed did not.
    """
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as name:
        folder = Path(name)
        inputs = write_inputs(folder)
        command = Command(program, folder)
        version, words = command.read_version(), command.list_words()
        sources = list(list_sources(words)) if set(parts) - {"plan"} else []
        products = [run for run in list_products(words) if run.part in parts]
        progress = Progress(len(sources) + len(products))
        found: dict[str, dict[str, Facts]] = {part: {} for part in parts}
        for batch in (sources, products):
            with ThreadPoolExecutor(num_jobs) as pool:
                futures = [pool.submit(make_facts, command, run, progress) for run in batch]
                try:
                    for run, future in zip(batch, futures, strict=True):
                        facts = future.result()
                        if run.part in parts:
                            found[run.part][shlex.join(run.args)] = facts
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return Fingerprint(version, inputs, found)


class Progress:
    """A line on stderr for every run that has ended."""

    def __init__(self, num_runs: int) -> None:
        """Count to this number."""
        self.num_runs, self.num_done, self.lock = num_runs, 0, threading.Lock()

    def tell(self, run: Run, code: int, seconds: float) -> None:
        """Print one."""
        with self.lock:
            self.num_done += 1
            ended = f", exit code {code}" if code else ""
            line = f"[{self.num_done}/{self.num_runs}] vlmedge {shlex.join(run.args)}"
            print(f"{line}: {seconds:.1f} s{ended}", file=sys.stderr, flush=True)


def write_inputs(folder: Path) -> dict[str, str]:
    """Put the checkpoint, the data and the gate into the folder; their hashes, by name."""
    shutil.copytree(SAMPLES / "reader", folder / CHECKPOINT)
    data = folder / DATA
    shutil.copytree(SAMPLES / "pictures", data.parent)
    questions = json.loads((data.parent / "questions.json").read_text("utf-8"))
    lines = []
    for i, question in enumerate(questions):
        visual = {"video": question["frames"]} if "frames" in question else {}
        visual = visual or {"image": question["picture"]}
        kept = {name: question[name] for name in ("task", "question", "answer")}
        lines.append(json.dumps({"id": str(i), "metric": "exact_match", **visual, **kept}) + "\n")
    data.write_text("".join(lines), "utf-8")
    (folder / GATE).write_text(GATE_TEXT, "utf-8")
    return hash_files(folder)


def hash_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def make_facts(command: Command, run: Run, progress: Progress) -> Facts:
    """Run one command; its exit code, its JSON, and the bundle that it has written."""
    start = time.perf_counter()
    done = command.call(*run.args)
    progress.tell(run, done.returncode, time.perf_counter() - start)
    if done.returncode not in run.codes:
        raise FingerprintError(f"vlmedge {shlex.join(run.args)} failed: {last_line(done.stderr)}")
    name = run.args[0]
    facts: Facts = {"exit code": done.returncode}
    if done.stdout.strip():
        # The layout too is part of what is printed: a dropped value never adds or takes a line
        facts["stdout: lines"] = done.stdout.count("\n")
        facts |= list_facts("stdout", json.loads(done.stdout), DROPPED[name])
    bundle = command.folder / run.args[2]
    if name in ("export", "quantize") and done.returncode == 0:
        facts |= hash_files(bundle)
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        facts |= list_facts("manifest.json", manifest, {})
        if run.args[1] != CHECKPOINT:  # nothing reads these again
            shutil.rmtree(bundle)
    return facts


def list_facts(name: str, document: Any, dropped: dict[str, str]) -> Facts:
    """JSON -> "NAME: path.of[3].keys" -> value, in the document's order, without the dropped."""
    return {
        f"{name}: {path}": value
        for path, value in walk_json(document)
        if re.sub(r"\[\d+\]", "[]", path) not in dropped
    }


def walk_json(value: Any, path: str = "") -> Iterator[tuple[str, Scalar]]:
    """Path and value of every leaf; an empty object or list is a leaf, "{}" or "[]"."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from walk_json(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from walk_json(item, f"{path}[{i}]")
    else:
        yield path, json.dumps(value) if isinstance(value, dict | list) else value


def last_line(text: str) -> str:
    """What a failed command has to say."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
