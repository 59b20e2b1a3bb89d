"""Turn the requests of evaluation harnesses into messages and options of the runtime.

lmms-eval and VLMEvalKit differ in their shapes, not in what they ask; the two adapters share this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.files.regular_file import check_regular
from ...runtime.options import GenerationOptions
from ..compare.measures import log_softmax

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
DEFAULT_NUM_FRAMES = 32  # of a clip, as lmms-eval's own Qwen2-VL
# Of other models' inputs or of the harness' own loop: they ask nothing of ours.
_NOT_OURS = frozenset({"image_aspect_ratio", "max_agentic_steps"})
_OF_ALL = ("repetition_penalty", "seed", "min_new_tokens", "no_repeat_ngram_size")
_SAME_NAMES = ("temperature", "top_p", "top_k", "min_p", "typical_p", *_OF_ALL)

ReadFrames = Callable[[Path], list[Image.Image]]


def make_options(asked: Mapping[str, Any], default_max_new_tokens: int) -> GenerationOptions:
    """Generation keywords as transformers spells them, and `until` -> options of the runtime.

    A temperature of 0, and none at all, is greedy, whatever the checkpoint's own default.

    Raises:
        ValueError: beam search, several answers, or a keyword that is not known.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    stop = [*_list_stops(given.pop("until", ())), *_list_stops(given.pop("stop_sequences", ()))]
    for key, only in (("num_beams", 1), ("n", 1), ("skip_special_tokens", True)):
        if (value := given.pop(key, only)) != only:
            raise ValueError(f"generation asks for {key} {value!r}, the runtime has only {only!r}")
    max_new_tokens = int(given.pop("max_new_tokens", default_max_new_tokens))
    do_sample = given.pop("do_sample", None)
    numbers = {key: given.pop(key) for key in _SAME_NAMES if key in given}
    if unknown := sorted(set(given) - _NOT_OURS):
        known = ", ".join(("until", "max_new_tokens", "do_sample", *_SAME_NAMES))
        raise ValueError(f"generation asks for {', '.join(unknown)}; known are {known}")
    if do_sample is False or not numbers.get("temperature"):
        kept = {key: numbers[key] for key in _OF_ALL if key in numbers}
        return GenerationOptions(
            max_new_tokens=max_new_tokens, do_sample=False, stop=tuple(stop) or None, **kept
        )
    return GenerationOptions(max_new_tokens=max_new_tokens, stop=tuple(stop) or None, **numbers)


def make_turn(
    visuals: Iterable[Any] | None, text: str, read_frames: ReadFrames, **limits: int
) -> dict[str, Any]:
    """One user turn, the pictures and clips before the question.

    Args:
        visuals: Pillow pictures, paths of pictures or of video files, lists of frames; lists of
            them are taken apart, None is none.
        text: the question.
        read_frames: opens a video file.
        limits: min_pixels, max_pixels of each picture.
    """
    content = [make_visual(visual, read_frames, **limits) for visual in flatten(visuals)]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def flatten(visuals: Iterable[Any] | None) -> list[Any]:
    """[[picture], None, picture] -> [picture, picture]; a list of frames in a dict stays whole."""
    flat: list[Any] = []
    for visual in visuals or ():
        if isinstance(visual, (list, tuple)):
            flat += flatten(visual)
        elif visual is not None:
            flat.append(visual)
    return flat


def add_system(messages: Sequence[dict[str, Any]], prompt: str | None) -> list[dict[str, Any]]:
    """Messages with a system turn, unless they have one or there is no prompt."""
    if prompt is None or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": prompt}, *messages]


def make_visual(visual: Any, read_frames: ReadFrames, **limits: int) -> dict[str, Any]:
    """A picture or clip as a part of a message.

    Raises:
        ValueError: a kind that the model can't see: sound, a clip's span, a web address.
    """
    if isinstance(visual, Image.Image):
        return {"type": "image", "image": visual, **limits}
    if isinstance(visual, (str, Path)):
        path = Path(str(visual).removeprefix("file://"))
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return {"type": "video", "video": read_frames(path), **limits}
        return {"type": "image", "image": visual, **limits}
    if isinstance(visual, Mapping) and isinstance(visual.get("video"), (list, tuple)):
        return {"type": "video", "video": list(visual["video"]), **limits}
    shown = f"{{{', '.join(map(str, visual))}}}" if isinstance(visual, Mapping) else ""
    raise ValueError(
        f"a visual is a {type(visual).__name__} {shown}".rstrip()
        + ", needed a picture, a path or a clip's frames"
    )


def read_clip(path: Path, num_frames: int) -> list[Image.Image]:
    """Frames of a video file, evenly spaced from the first to the last; fewer if it has fewer.

    Needs PyAV (extra: video).

    Raises:
        ValueError: no video in the file, or a broken one.
    """
    import av
    from av.error import FFmpegError

    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, needed at least 1")
    check_regular(path)
    try:
        # Twice: the count in a file's header may be missing or wrong, and all frames of a long
        # clip would not fit into memory.
        with av.open(str(path)) as container:
            count = sum(1 for _ in container.decode(video=0))
        wanted = pick_frames(count, num_frames)
        with av.open(str(path)) as container:
            frames = {
                index: frame.to_image()
                for index, frame in enumerate(container.decode(video=0))
                if index in set(wanted)
            }
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{path} can't be read as a video: {error}") from error
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return [frames[index] for index in wanted]


def pick_frames(count: int, num_frames: int) -> list[int]:
    """Indices of at most `num_frames` of `count` frames, first and last among them, no one twice.

    An odd number above one is rounded down: the ViT looks at frames in pairs.
    """
    number = min(count, num_frames)
    if number > 1:
        number -= number % 2
    return [int(index) for index in np.linspace(0, count - 1, number).round()] if count else []


def measure_loss(logits: NDArray[np.floating], token_ids: Sequence[int]) -> tuple[float, bool]:
    """Mean cross entropy of a continuation in nats, and whether greedy decoding would give it.

    Args:
        logits: float[P, V], before each token.
        token_ids: P of them, at least one.
    """
    chosen = log_softmax(logits)[np.arange(len(token_ids)), list(token_ids)]
    is_greedy = bool(np.all(logits.argmax(axis=-1) == np.asarray(token_ids)))
    return -float(chosen.mean()), is_greedy


def _list_stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"stops are {value!r:.80}, needed strings")
    return [stop for stop in stops if stop]
