"""A bundle as a model of lmms-eval: `lmms-eval --model vlmedge --model_args bundle=FOLDER`.

lmms-eval 0.6 and later finds it by the entry point `lmms_eval.models`. Its chat interface is used
where a task has one; `--force_simple` takes the older one, which multiple choice by likelihood
needs. Importing this needs lmms-eval, which brings torch; the bundle itself needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from ...runtime.inputs.request import RequestMaker
from ...runtime.inputs.tokens import TextTokenizer
from ...runtime.model import Model
from ...runtime.options import GenerationOptions
from ..compare.observe import BundleSide
from ..data.examples import Example
from .requests import (
    DEFAULT_NUM_FRAMES,
    ReadFrames,
    add_system,
    make_options,
    make_turn,
    make_visual,
    measure_loss,
    read_clip,
)

NAME = "vlmedge"
DEFAULT_MAX_NEW_TOKENS = 128  # where a task doesn't say: that of lmms-eval's own models

Messages = list[dict[str, Any]]
# A request -> (its document's question, its keywords); see `read_chat` and `read_simple`.
Request = tuple[Messages, Mapping[str, Any]]


def make_manifest() -> ModelManifest:
    """What the entry point tells lmms-eval."""
    return ModelManifest(
        model_id=NAME,
        chat_class_path=f"{__name__}.VlmedgeChat",
        simple_class_path=f"{__name__}.VlmedgeSimple",
    )


class VlmedgeChat(lmms):
    """A bundle behind lmms-eval's chat interface: requests hold a function that gives messages."""

    is_simple = False

    def __init__(
        self,
        bundle: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | str | None = None,
        num_threads: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        num_frames: int = DEFAULT_NUM_FRAMES,
        system_prompt: str | None = None,
    ) -> None:
        """Open the bundle; an argument that is none of these is an error.

        Args:
            bundle: its folder.
            batch_size: conversations that are answered together.
            device: "cpu" or "cuda"; None: as `vlmedge run` chooses.
            max_batch_size: of automatic batch sizes, which there are none of.
            num_threads: CPU threads; None: all cores.
            min_pixels: pictures below this area are enlarged.
            max_pixels: pictures above it are shrunk, within the bundle's budget.
            num_frames: taken from each clip.
            system_prompt: instead of the template's.
        """
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, needed a number: there is no auto")
        self._batch_size = int(batch_size)
        providers = None if device is None else str(device).partition(":")[0]
        self._load = partial(Model.load, bundle, providers=providers, num_threads=num_threads)
        self._model = self._load()
        self._bundle = bundle
        self._num_threads = num_threads
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self._limits = {name: int(value) for name, value in limits.items() if value is not None}
        self._read_frames = partial(read_clip, num_frames=int(num_frames))
        self._system_prompt = system_prompt

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request."""
        texts: list[str] = []
        for start in tqdm(range(0, len(requests), self._batch_size), disable=self.rank != 0):
            batch = [request.args for request in requests[start : start + self._batch_size]]
            asked = [self._read(args) for args in batch]
            answers = self._model.chat_batch(
                [add_system(messages, self._system_prompt) for messages, _ in asked],
                [_options(keywords) for _, keywords in asked],
            )
            for args, (_, keywords), answer in zip(batch, asked, answers, strict=True):
                texts.append(answer.text)
                self.cache_hook.add_partial("generate_until", (args[0], keywords), answer.text)
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of every round of each request; its task says when there are no more."""
        return [self._answer_rounds(request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """For each request the continuation's loss, and whether it is the greedy answer.

        The loss and not the likelihood, whatever the name says: lmms-eval takes the choice with the
        least (its issue 370), and its own models give the mean cross entropy. In the wrapping of a
        generated text, because version 0.7.3 makes a string of a bare pair.
        """
        if not self.is_simple:
            raise NotImplementedError(
                "lmms-eval's chat interface has no likelihoods: add --force_simple"
            )
        self._model.close()  # one decoder at a time in memory
        self._model = self._load()
        tokenizer = RequestMaker(Path(self._bundle), self._model.manifest, None).tokenizer
        side = BundleSide(self._bundle, self._num_threads)
        try:
            return [
                GenerationResult(self._measure(side, tokenizer, request.args))  # type: ignore
                for request in tqdm(requests, disable=self.rank != 0)
            ]
        finally:
            side.close()

    def clean(self) -> None:
        """Free the graphs, for a judge on the same machine; they come back when they are needed."""
        self._model.close()
        self._model = self._load()
        super().clean()

    def _read(self, args: tuple[Any, ...]) -> Request:
        _, doc_to_messages, keywords, doc_id, task, split = args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return self._read_messages(messages), keywords

    def _read_messages(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        return read_chat(messages, self._read_frames, **self._limits)

    def _next_round(
        self, args: tuple[Any, ...], index: int, outputs: list[str], info: Any
    ) -> tuple[Messages, list[str], Any] | None:
        """Messages of a later round, the outputs so far as the task wants them; None: it is over.

        What a task gives that knows of no rounds is a list of messages: it is asked once.
        """
        _, doc_to_messages, _, doc_id, task, split = args
        doc = self.task_dict[task][split][doc_id]
        given = doc_to_messages(
            doc, round_idx=index, previous_output=outputs, previous_round_info=info
        )
        if not isinstance(given, tuple) or given[1]:
            return None
        messages, _, known, info = given
        return self._read_messages(messages), outputs if known is None else list(known), info

    def _answer_rounds(self, args: tuple[Any, ...]) -> list[str]:
        messages, keywords = self._read(args)
        outputs: list[str] = []
        info = None
        while True:
            turns = add_system(messages, self._system_prompt)
            answer = self._model.chat(turns, _options(keywords))
            outputs.append(answer.text)
            following = self._next_round(args, len(outputs), outputs, info)
            if following is None:
                return outputs
            messages, outputs, info = following

    def _measure(
        self, side: BundleSide, tokenizer: TextTokenizer, args: tuple[Any, ...]
    ) -> tuple[float, bool]:
        context, target, doc_to_visual, doc_id, task, split = args
        doc = self.task_dict[task][split][doc_id]
        continuation = target if isinstance(target, str) else str(target(doc))
        turn = _make_turn(doc_to_visual(doc), context, self._read_frames, self._limits)
        token_ids = tokenizer.encode_text(continuation)
        if not token_ids:
            return 0.0, True
        example = Example(f"{task}/{doc_id}", tuple(add_system([turn], self._system_prompt)))
        seen = side.observe(example, len(token_ids), forced=token_ids)
        return measure_loss(seen.logits, token_ids)


class VlmedgeSimple(VlmedgeChat):
    """The same behind the simple interface: requests hold a text and a function for the visuals."""

    is_simple = True

    def _read(self, args: tuple[Any, ...]) -> Request:
        context, keywords, doc_to_visual = args[:3]
        doc_id, task, split = args[-3:]
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        return [_make_turn(visuals, context, self._read_frames, self._limits)], keywords

    def _next_round(
        self, args: tuple[Any, ...], index: int, outputs: list[str], info: Any
    ) -> tuple[Messages, list[str], Any] | None:
        _, _, _, doc_to_text, doc_id, task, split = args
        given = doc_to_text(
            self.task_dict[task][split][doc_id],
            previous_output=outputs,
            round_idx=index,
            previous_round_info=info,
        )
        if not isinstance(given, tuple) or given[2]:
            return None
        visuals, context, _, known, info = given
        turn = _make_turn(visuals, context, self._read_frames, self._limits)
        return [turn], outputs if known is None else list(known), info


def read_chat(
    messages: Sequence[Mapping[str, Any]],
    read_frames: ReadFrames,
    **limits: int,
) -> Messages:
    """lmms-eval's messages, whose pictures and clips stand under "url", as the runtime's.

    Raises:
        ValueError: sound, or a part of another type.
    """
    return [
        {
            "role": message["role"],
            "content": [_read_part(part, read_frames, **limits) for part in message["content"]],
        }
        for message in messages
    ]


def _read_part(part: Mapping[str, Any], read_frames: ReadFrames, **limits: int) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise ValueError(f"a message holds {kind!r}, Qwen2-VL takes text, images and videos")
    if part.get("start_time") is not None or part.get("end_time") is not None:
        raise ValueError("a message asks for a span of a video, which can't be cut out here")
    source = part["url"]
    if kind == "video" and isinstance(source, (list, tuple)):
        source = {"video": source}
    return make_visual(source, read_frames, **limits)


def _options(keywords: Mapping[str, Any]) -> GenerationOptions:
    return make_options(keywords, DEFAULT_MAX_NEW_TOKENS)


def _make_turn(
    visuals: Any, context: str, read_frames: ReadFrames, limits: Mapping[str, int]
) -> dict[str, Any]:
    """Pictures come before the text; LLaVA's marks for their places say nothing to Qwen2-VL."""
    return make_turn([visuals], context.replace("<image>", ""), read_frames, **limits)
