"""A bundle as a model of VLMEvalKit: `register` it, then run the kit as usual.

    # run_bundle.py, beside VLMEvalKit's run.py
    from vlmedge.quant.harness.vlmevalkit_adapter import register
    register("orin-w8a8", "orin.bundle")
    import run
    run.load_env()
    run.main()

and `python run_bundle.py --model orin-w8a8 --data DocVQA_VAL`. The kit has no entry points for
models. Importing this needs VLMEvalKit, which brings torch; the bundle itself needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

from ...runtime.model import Model
from .requests import (
    DEFAULT_NUM_FRAMES,
    ReadFrames,
    add_system,
    make_options,
    make_visual,
    read_clip,
)

DEFAULT_MAX_NEW_TOKENS = 2048  # the kit asks no number; this is that of its own Qwen2-VL


def register(name: str, bundle: str | Path, **options: Any) -> None:
    """Make a bundle known to the kit.

    Args:
        name: for `--model`. One that holds "Qwen2-VL" is given options of the kit's own class.
        bundle: its folder.
        options: of `VlmedgeModel`.

    Raises:
        ValueError: the kit has a model of that name, or would take it for its own.
    """
    from vlmeval.config import supported_VLM  # pyright: ignore[reportMissingImports]

    if name in supported_VLM:
        raise ValueError(f"VLMEvalKit has a model called {name}: choose another name")
    if taken := [word for word in ("Qwen2-VL", "Qwen2.5-VL", "Llama-4") if word in name]:
        raise ValueError(f"VLMEvalKit treats names with {taken[0]} as its own: choose another")
    supported_VLM[name] = partial(VlmedgeModel, str(Path(bundle).absolute()), **options)


class VlmedgeModel(BaseModel):
    """A bundle behind the kit's interface."""

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self,
        bundle: str,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        nframe: int = DEFAULT_NUM_FRAMES,
        system_prompt: str | None = None,
    ) -> None:
        """Open the bundle.

        Args:
            bundle: its folder.
            device: "cpu" or "cuda"; None: as `vlmedge run` chooses.
            num_threads: CPU threads; None: all cores.
            min_pixels: pictures below this area are enlarged.
            max_pixels: pictures above it are shrunk, within the bundle's budget.
            max_new_tokens: the longest answer.
            nframe: taken from each clip; the kit sets it to the data set's own number.
            system_prompt: instead of the template's.
        """
        super().__init__()
        self.nframe: int | None = nframe
        self._model = Model.load(bundle, providers=device, num_threads=num_threads)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self._limits = {name: value for name, value in limits.items() if value is not None}
        self._options = make_options({}, max_new_tokens)
        self._system_prompt = system_prompt

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: Any = None) -> str:
        """Answer one question: a list of {"type", "value"}, some with a "role"."""
        return self._answer(split_roles(message, self._read_frames, **self._limits))

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: Any = None) -> str:
        """Answer a conversation: a list of {"role", "content"}, content as `generate_inner`'s."""
        read, limits = self._read_frames, self._limits
        turns = [
            {"role": turn["role"], "content": read_parts(turn["content"], read, **limits)}
            for turn in message
        ]
        return self._answer(turns)

    def _answer(self, turns: list[dict[str, Any]]) -> str:
        return self._model.chat(add_system(turns, self._system_prompt), self._options).text

    def _read_frames(self, path: Path) -> list[Any]:
        return read_clip(path, self.nframe or DEFAULT_NUM_FRAMES)


def split_roles(
    message: Sequence[Mapping[str, Any]],
    read_frames: ReadFrames,
    **limits: int,
) -> list[dict[str, Any]]:
    """A list of parts -> turns: parts that follow each other under one role are one turn.

    A part without a role is the user's.

    Raises:
        ValueError: a part of another type.
    """
    turns: list[dict[str, Any]] = []
    for part in message:
        role = part.get("role", "user")
        content = read_parts([part], read_frames, **limits)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        else:
            turns.append({"role": role, "content": content})
    return turns


def read_parts(
    parts: Sequence[Mapping[str, Any]],
    read_frames: ReadFrames,
    **limits: int,
) -> list[dict[str, Any]]:
    """Parts of the kit as parts of the runtime's messages.

    Raises:
        ValueError: a part of another type.
    """
    content = []
    for part in parts:
        kind, value = part["type"], part["value"]
        if kind == "text":
            content.append({"type": "text", "text": value})
        elif kind in ("image", "video"):
            if isinstance(value, (list, tuple)):
                value = {"video": value}
            content.append(make_visual(value, read_frames, **limits))
        else:
            raise ValueError(f"a part is {kind!r}, Qwen2-VL takes text, image and video")
    return content
