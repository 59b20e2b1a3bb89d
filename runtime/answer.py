"""The answer to one request: its text, how it ended and what it cost."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from .options import FinishReason


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one request, by stage; a batch's rows share the times of their batch."""

    load_s: float  # sessions created for this request; 0 when they were there
    preprocess_s: float  # pictures read, resized and cut; prompt rendered and encoded
    vision_s: float
    prefill_s: float
    decode_s: float  # from the first token on
    decode_tokens_per_s: float  # of this row; 0 for an answer of one token


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        text: without the request's stop string, the end token, and, unless the request keeps them,
            special tokens.
        token_ids: every generated token, the one that ended the answer included.
        finish_reason: "stop" (end token or stop string), "length" (max_new_tokens), "cancelled".
        num_prompt_tokens: template, text and visual tokens.
        num_image_tokens: the visual ones among them, of images and videos.
        notices: what the caller should know, such as pictures shrunk to the pixel budget.
        timings: where the seconds went.
        providers: where the graphs ran, the preferred one first.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_image_tokens: int
    notices: tuple[str, ...]
    timings: Timings
    providers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON has, under the names of the attributes; `timings` is a dict, too."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """One JSON object, as `vlmedge run --json` prints it.

        Its keys are the attributes: text, token_ids, finish_reason, num_prompt_tokens,
        num_image_tokens, notices, timings (an object of seconds: load_s, preprocess_s, vision_s,
        prefill_s, decode_s; and decode_tokens_per_s) and providers.

        Args:
            indent: spaces of each level; None: all on one line, for logs.
        """
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)
