"""The quantizer's main job on the sample: quantize it, judge it, and catch a recipe that breaks it.

Draws a calibration and a held-out set, quantizes samples/reader by a preset, checks the bundle
against the float one with samples/gate.toml, then does the same with samples/broken.toml, which
must fail, with the layers named that break it. Prints the commands; exits with 1 if either verdict
is not the expected one. Runs in whatever environment its Python belongs to: scripts/quantize.sh
makes one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = Path("samples/reader")
GATE = Path("samples/gate.toml")
BROKEN = Path("samples/broken.toml")
# Of broken.toml: the report has to name it.
GUILTY = "visual.blocks.2.mlp.fc1"
PASSED, FAILED = 0, 1
INTERRUPTED = (130, -signal.SIGINT)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bundles/quantized"))
    parser.add_argument("--recipe", default="orin")
    parser.add_argument("--num-calibration", type=int, default=16, help="examples per task")
    parser.add_argument("--num-held-out", type=int, default=20, help="examples per task")
    return parser.parse_args(argv)


def run(*args: str | Path) -> int:
    """Run one command as a person would type it; its exit code."""
    words = [str(arg) for arg in args]
    print(f"$ {shlex.join(words)}", flush=True)
    program = [sys.executable, words[1]] if words[0] == "python" else None
    command = [
        *(program or [sys.executable, "-m", "vlmedge.runtime"]),
        *words[2 if program else 1 :],
    ]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code in INTERRUPTED:
        sys.exit(INTERRUPTED[0])
    return code


def must(*args: str | Path) -> None:
    """Run a command that has to succeed."""
    if code := run(*args):
        sys.exit(code)


def draw(folder: Path, split: str, num_examples: int) -> Path:
    """One data set of the sample, drawn anew."""
    shutil.rmtree(ROOT / folder, ignore_errors=True)
    must(
        "python", "scripts/draw_sample_data.py", folder,
        "--split", split, "--num-examples", str(num_examples),
    )  # fmt: skip
    return folder / "data.jsonl"


def check(bundle: Path, reference: Path, data: Path) -> int:
    """Judge a bundle; 0 passed, 1 failed, 2 could not run."""
    return run(
        "vlmedge", "check", bundle, "--against", reference, "--data", data,
        "--gate", GATE, "--report", f"{bundle}-report",
    )  # fmt: skip


def main() -> int:
    """Quantize and check, then break and check."""
    args = parse_args()
    # Ctrl-C is for the command that runs: it removes what is unfinished, and says what is kept
    signal.signal(signal.SIGINT, lambda *_: None)
    out: Path = args.out
    (ROOT / out).mkdir(parents=True, exist_ok=True)
    calibration = draw(out / "calibration", "calibration", args.num_calibration)
    held_out = draw(out / "held-out", "held-out", args.num_held_out)
    must("vlmedge", "export", CHECKPOINT, out / "float")
    good, bad = out / args.recipe, out / "broken"
    for recipe, bundle in ((args.recipe, good), (BROKEN, bad)):
        must(
            "vlmedge", "quantize", CHECKPOINT, bundle, "--recipe", recipe, "--data", calibration
        )  # fmt: skip
    if code := check(good, out / "float", held_out):
        print(f"the bundle of {args.recipe} should have passed, exit code {code}", file=sys.stderr)
        return 1
    if (code := check(bad, out / "float", held_out)) != FAILED:
        print(f"the broken bundle should have failed, exit code {code}", file=sys.stderr)
        return 1
    verdict = json.loads((ROOT / f"{bad}-report" / "report.json").read_text("utf-8"))
    if GUILTY not in [finding["layer"] for finding in verdict["guilty"]]:
        print(f"the report does not name {GUILTY}", file=sys.stderr)
        return 1
    print(f"{good} may ship; {bad} may not, and {GUILTY} is named")
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
