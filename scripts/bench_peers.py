"""The same picture, question and text in every runtime that is installed, alternating.

    python scripts/bench_peers.py --int4 B4 --int8 B8 \
        --llama-tools DIR --q4-0 M.gguf --q8-0 M8.gguf --mmproj P.gguf \
        --openvino-python PY --openvino-int4 DIR4 --openvino-int8 DIR8 \
        --transformers CHECKPOINT

Every measurement is a fresh process, so that peak memory is that of one task alone, and the
runtimes take turns, so that a noisy minute of the machine hits all of them: look at ratios before
figures. What is not given is reported as not installed. docs/benchmarks.md says how to make each
input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peers import llama
from peers.figures import Figures, Task, run_worker

PEERS = Path(__file__).resolve().parent / "peers"
MAKE_PICTURE = """
import sys
from PIL import Image
from vlmedge.runtime.cli.bench import make_picture
Image.fromarray(make_picture(int(sys.argv[1]), int(sys.argv[2]))).save(sys.argv[3])
"""
COLUMNS = (
    ("vision_s", "ViT s", 2),
    ("ttft_s", "TTFT s", 2),
    ("prefill_tokens_per_s", "prefill tok/s", 1),
    ("decode_tokens_per_s", "decode tok/s", 2),
    ("peak_bytes", "peak MiB", 0),
    ("num_prompt_tokens", "prompt tokens", 0),
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One runtime with one set of weights."""

    name: str
    bits: int  # of the decoder's weights: ratios are taken among equals
    measure: Callable[[Task], Figures] | None  # None: not installed


def list_contenders(args: argparse.Namespace) -> list[Contender]:
    """All that the command line could name, ours first."""

    def worker(script: str, python: str | None, model: str | None) -> Callable | None:
        if python is None or model is None:
            return None
        return lambda task: _measure_worker(python, str(PEERS / script), model, task)

    def tools(model: str | None) -> Callable | None:
        if args.llama_tools is None or model is None:
            return None
        return lambda task: _measure_llama(args.llama_tools, model, args.mmproj, task)

    ours, openvino, reference = (
        "vlmedge_worker.py",
        "openvino_worker.py",
        "transformers_worker.py",
    )
    return [
        Contender("vlmedge int4", 4, worker(ours, sys.executable, args.int4)),
        Contender("vlmedge int8", 8, worker(ours, sys.executable, args.int8)),
        Contender("llama.cpp Q4_0", 4, tools(args.q4_0)),
        Contender("llama.cpp Q8_0", 8, tools(args.q8_0)),
        Contender("OpenVINO int4", 4, worker(openvino, args.openvino_python, args.openvino_int4)),
        Contender("OpenVINO int8", 8, worker(openvino, args.openvino_python, args.openvino_int8)),
        Contender(
            "transformers bf16", 16, worker(reference, args.transformers_python, args.transformers)
        ),
    ]


def _measure_worker(python: str, script: str, model: str, task: Task) -> Figures:
    picture = run_worker(python, script, model, task) if task.picture else Figures()
    if not task.num_text_tokens:
        return picture
    text = run_worker(python, script, model, dataclasses.replace(task, picture=""))
    return picture.merge(dataclasses.replace(text, peak_bytes=None))


def _measure_llama(folder: str, model: str, mmproj: str | None, task: Task) -> Figures:
    figures = Figures()
    if task.picture and mmproj:
        figures = llama.measure_picture(Path(folder), model, mmproj, task)
    if task.num_text_tokens:
        figures = figures.merge(llama.measure_text(Path(folder), model, task))
    return figures


def take_turns(contenders: list[Contender], task: Task, rounds: int) -> dict[str, list[Figures]]:
    """All contenders once a round; one that fails is told and left out from then on."""
    results: dict[str, list[Figures]] = {}
    failed: set[str] = set()
    for i in range(rounds):
        for contender in contenders:
            if contender.measure is None or contender.name in failed:
                continue
            print(f"round {i + 1} of {rounds}: {contender.name}", file=sys.stderr, flush=True)
            try:
                figures = contender.measure(task)
            except (OSError, RuntimeError, ValueError) as error:
                print(f"{contender.name}: {error}", file=sys.stderr)
                failed.add(contender.name)
                continue
            results.setdefault(contender.name, []).append(figures)
    return results


def make_ratios(contenders: list[Contender], results: dict[str, list[Figures]]) -> list[dict]:
    """Ours over theirs, among those of equal bits; transformers stands beside each of ours.

    A round measures all, so it gives one ratio of each pair; with more than one there is an
    interval of their mean.
    """
    ratios = []
    for ours in contenders:
        if not ours.name.startswith("vlmedge") or ours.name not in results:
            continue
        for theirs in contenders:
            if theirs.name.startswith("vlmedge") or theirs.name not in results:
                continue
            if theirs.bits not in (ours.bits, 16):
                continue
            row: dict = {"ours": ours.name, "theirs": theirs.name}
            for name, _, _ in COLUMNS[:-1]:
                row[name] = _pair(results[ours.name], results[theirs.name], name)
            ratios.append(row)
    return ratios


def _pair(ours: list[Figures], theirs: list[Figures], name: str) -> dict | None:
    """One figure's ratio over the rounds that both have finished; None: there is none."""
    # After the measurements: what it brings along would count in the peaks of processes
    from vlmedge.quant.compare.ratio_interval import estimate_ratio

    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ours, theirs, strict=False)]
    known = [(a, b) for a, b in pairs if a and b]
    if not known:
        return None
    low, ratio, high = estimate_ratio(*zip(*known, strict=True))
    if len(known) == 1:
        return {"ratio": round(ratio, 3)}
    return {"ratio": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}


def _format_ratio(cell: dict | None) -> str:
    """`1.31 (1.25 to 1.38)`; "no difference" where the interval holds 1."""
    if cell is None:
        return ""
    if "low" not in cell:
        return f"{cell['ratio']:.2f} (one round)"
    word = "no difference, " if cell["low"] <= 1 <= cell["high"] else ""
    return f"{word}{cell['ratio']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"


def print_tables(
    contenders: list[Contender], results: dict[str, list[Figures]], ratios: list[dict]
) -> None:
    """Markdown: medians with their range, then ratios with their 95 % interval."""
    print("| runtime | " + " | ".join(title for _, title, _ in COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for contender in contenders:
        runs = results.get(contender.name)
        if runs is None:
            note = "not installed" if contender.measure is None else "failed"
            print(f"| {contender.name} | {note} |" + " |" * (len(COLUMNS) - 1))
            continue
        cells = [_format(runs, name, digits) for name, _, digits in COLUMNS]
        print(f"| {contender.name} | " + " | ".join(cells) + " |")
    print(
        "\n| ours / theirs | "
        + " | ".join(title.rsplit(" ", 1)[0] for _, title, _ in COLUMNS[:-1])
        + " |"
    )
    print("|---|" + "---:|" * (len(COLUMNS) - 1))
    for row in ratios:
        cells = [_format_ratio(row[name]) for name, _, _ in COLUMNS[:-1]]
        print(f"| {row['ours']} / {row['theirs']} | " + " | ".join(cells) + " |")


def _format(runs: list[Figures], name: str, digits: int) -> str:
    values = [value for run in runs if (value := getattr(run, name)) is not None]
    if not values:
        return ""
    scale = 2**-20 if name == "peak_bytes" else 1.0
    middle, low, high = (
        f"{value * scale:.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} [{low} - {high}]"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--int4", metavar="BUNDLE", help="our bundle, int4")
    parser.add_argument("--int8", metavar="BUNDLE", help="our bundle, int8")
    parser.add_argument("--llama-tools", metavar="DIR", help="llama-bench and llama-mtmd-cli")
    parser.add_argument("--q4-0", metavar="GGUF")
    parser.add_argument("--q8-0", metavar="GGUF")
    parser.add_argument("--mmproj", metavar="GGUF", help="llama.cpp's vision weights")
    parser.add_argument("--openvino-python", metavar="PYTHON", help="with openvino-genai")
    parser.add_argument("--openvino-int4", metavar="DIR")
    parser.add_argument("--openvino-int8", metavar="DIR")
    parser.add_argument("--transformers-python", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--transformers", metavar="CHECKPOINT")
    parser.add_argument("--image-size", metavar="WxH", default="448x448")
    parser.add_argument("--text-tokens", type=int, default=512, help="0: the picture only")
    parser.add_argument("--no-picture", action="store_true", help="the text only")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", type=Path, help="every run, in full")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "picture.png")
        # In a process of its own: numpy and Pillow here would count in every peak below.
        command = [sys.executable, "-c", MAKE_PICTURE, *args.image_size.split("x"), picture]
        subprocess.run(command, check=True)
        task = Task(
            "" if args.no_picture else picture, args.text_tokens, args.new_tokens, args.threads
        )
        contenders = list_contenders(args)
        results = take_turns(contenders, task, args.rounds)
    ratios = make_ratios(contenders, results)
    print_tables(contenders, results, ratios)
    if args.json:
        content = {
            "task": dataclasses.asdict(task) | {"picture": args.image_size},
            "runs": {name: [dataclasses.asdict(r) for r in runs] for name, runs in results.items()},
            "ratios": ratios,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
