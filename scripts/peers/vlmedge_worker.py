"""Our runtime in a process of its own: BUNDLE as argument, the task as JSON on stdin.

With a picture: one question about it. Without one: a text of the asked length.
"""

from __future__ import annotations

import json
import sys

from figures import QUESTION, RESULT

from vlmedge.runtime import GenerationOptions, Model

LOAD_ONE = "one"


def main() -> None:
    """Measure and print."""
    task = json.loads(sys.stdin.read())
    options = GenerationOptions(
        max_new_tokens=task["num_new_tokens"], do_sample=False, ignore_eos=True
    )
    # With one graph at a time the ViT's weights are gone before the decoder's come: the lowest peak
    with Model.load(sys.argv[1], num_threads=task["num_threads"], residency=LOAD_ONE) as model:
        if task["picture"]:
            answer = model.answer(QUESTION, [task["picture"]], options=options)
            timings = answer.timings
            vision_s = timings.preprocess_s + timings.vision_s
            figures = {
                "vision_s": vision_s,
                "ttft_s": vision_s + timings.prefill_s,
                "num_prompt_tokens": answer.num_prompt_tokens,
            }
        else:
            text = "".join(str(7 * i % 10) for i in range(task["num_text_tokens"]))
            # The first request loads and warms up; of the second only the tokens are counted.
            model.answer(text[:16], options=GenerationOptions(max_new_tokens=2))
            answer = model.answer(text, options=options)
            timings = answer.timings
            figures = {
                "prefill_tokens_per_s": answer.num_prompt_tokens / timings.prefill_s,
                "decode_tokens_per_s": timings.decode_tokens_per_s,
            }
    print(RESULT + json.dumps(figures))


if __name__ == "__main__":
    main()
