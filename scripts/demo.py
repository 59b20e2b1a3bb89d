"""The two commands of the main job on the sample: export, then a question about a picture.

Prints the commands, the question, the answer and the expected one; exits with 1 if they differ.
Runs in whatever environment its Python belongs to, without torch: scripts/demo.sh makes one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = Path("samples/reader")
QUESTIONS = Path("samples/pictures/questions.json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/reader"))
    parser.add_argument("--no-export", action="store_true", help="the bundle is there already")
    return parser.parse_args(argv)


def run_vlmedge(*args: str) -> str:
    """Run one command of ours, shown as a person would type it, and return its stdout."""
    print(f"$ vlmedge {shlex.join(args)}", flush=True)
    command = [sys.executable, "-m", "vlmedge.runtime", *args]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def main() -> int:
    """Export unless told not to, ask the first question of the list, compare."""
    args = parse_args()
    # Ctrl-C is for the command that runs: it removes what is unfinished, and says what is kept
    signal.signal(signal.SIGINT, lambda *_: None)
    if not args.no_export:
        (ROOT / args.bundle).parent.mkdir(parents=True, exist_ok=True)
        print(run_vlmedge("export", str(CHECKPOINT), str(args.bundle)))
    entry = json.loads((ROOT / QUESTIONS).read_text(encoding="utf-8"))[0]
    picture = str(QUESTIONS.parent / entry["picture"])
    answer = run_vlmedge("run", str(args.bundle), entry["question"], "--image", picture)
    print(f"picture   {picture}")
    print(f"question  {entry['question']}")
    print(f"answer    {answer}")
    print(f"expected  {entry['answer']}")
    return 0 if answer == entry["answer"] else 1


if __name__ == "__main__":
    sys.exit(main())
