"""A picture and a question -> an answer: python describe.py BUNDLE PICTURE [QUESTION].

The smallest program on the runtime. The bundle's engines are used where they fit this GPU, ONNX
Runtime elsewhere; what it cost goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmedge.runtime import GenerationOptions, Model, VlmedgeError


def main(argv: list[str] | None = None) -> int:
    """Answer one question; 1 and one line on stderr where that fails."""
    parser = argparse.ArgumentParser(description="Answer one question about one picture.")
    parser.add_argument("bundle", type=Path, help="folder made by vlmedge export")
    parser.add_argument("picture", type=Path)
    parser.add_argument("question", nargs="?", default="Describe this image.")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--provider", help="tensorrt, cpu, cuda, ...")
    args = parser.parse_args(argv)
    try:
        options = GenerationOptions(max_new_tokens=args.max_new_tokens)
        with Model.load(args.bundle, providers=args.provider) as model:
            answer = model.answer(args.question, [args.picture], options=options)
            print(answer.text)
            times = answer.timings
            print(
                f"{', '.join(model.providers)}: loading {times.load_s:.2f} s, "
                f"picture {times.preprocess_s + times.vision_s:.2f} s "
                f"({answer.num_image_tokens} tokens), prompt {times.prefill_s:.2f} s, "
                f"{times.decode_tokens_per_s:.1f} tokens/s",
                file=sys.stderr,
            )
    except (VlmedgeError, ValueError) as error:
        print(f"describe.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
