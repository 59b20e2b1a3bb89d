"""Turn messages into everything the graphs need: token ids, M-RoPE positions, pixel patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Manifest, MropeRule
from ..errors import BundleError, ContextLengthError, ImageError
from ..files.regular_file import read_regular_text
from .asked_size import find_asked_size, open_at_size
from .images import read_size
from .messages import MediaPart, list_ignored, list_media, read_messages
from .patches import VisualInput, count_visual_tokens, make_image_input, make_video_input
from .positions import make_position_ids
from .prompt import ChatTemplate
from .tokens import TextTokenizer
from .video import Frames

Limits = tuple[int | None, int | None]  # min_pixels and max_pixels


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation, ready for the graphs.

    Attributes:
        input_ids: int64[L].
        position_ids: int64[3, L].
        is_visual: bool[L], True at the pads of pictures and clips.
        visuals: pictures and clips in the order of the prompt.
        notices: changes to them that the caller should know of, and keys that were ignored.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    visuals: tuple[VisualInput, ...]
    notices: tuple[str, ...]


class RequestMaker:
    """The host's half of a bundle: tokenizer, chat template, picture and position rules."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        mrope_rule: MropeRule | None,
        *,
        clip_pixels: int | None = None,
    ) -> None:
        """Read the bundle's small files.

        Args:
            folder: the bundle's folder.
            manifest: the bundle's manifest, which pictures and prompts have to fit.
            mrope_rule: rule for position ids; None: the manifest's.
            clip_pixels: budget of all frame pairs of a clip together; None: as much as one picture.

        Raises:
            BundleError: a file is damaged or doesn't fit the manifest.
        """
        self.tokenizer = TextTokenizer(
            folder / manifest.tokenizer_file, manifest.tokens, manifest.decoder.vocab_size
        )
        path = folder / manifest.chat_template_file
        try:
            source = read_regular_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is not readable: {error}") from error
        self._template = ChatTemplate(
            source, self.tokenizer, manifest.tokens, manifest.special_tokens
        )
        self._manifest = manifest
        self._mrope_rule: MropeRule = mrope_rule or manifest.mrope_rule
        self._clip_pixels = clip_pixels

    def make(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        add_vision_id: bool = False,
        allowed_special_tokens: Iterable[str] = (),
    ) -> Request:
        """Read the pictures, render and encode the prompt, compute its positions.

        Raises:
            PromptError: the messages are malformed, the template refuses them, or a special token
                can't be allowed in their text.
            ContextLengthError: the prompt doesn't fit the context; raised before a picture is
                decoded, and before a text that is hopelessly long is encoded.
            ImageError: a picture can't be read.
            ValueError: the pixel limits make no sense.
        """
        checked = read_messages(messages)
        limits = (min_pixels, max_pixels)
        counts = self._count_tokens(list_media(checked), limits)
        context = self._manifest.context_length
        input_ids = self._template.encode(
            checked,
            counts,
            add_vision_id=add_vision_id,
            max_tokens=context - 1,
            allowed=allowed_special_tokens,
        )
        if len(input_ids) >= context:
            raise ContextLengthError(
                f"the prompt has {len(input_ids)} tokens, {sum(counts)} of them visual, the "
                f"model's context holds {context} with the answer: shorten it or lower max_pixels"
            )
        visuals = tuple(self._cut(part, limits) for part in list_media(checked))
        if [visual.num_tokens for visual in visuals] != counts:
            raise ImageError("a picture changed while it was read: read it again")
        tokens, vision = self._manifest.tokens, self._manifest.vision
        position_ids = make_position_ids(
            input_ids,
            [visual.grid for visual in visuals if visual.kind == "image"],
            [visual.grid for visual in visuals if visual.kind == "video"],
            tokens,
            vision.spatial_merge_size,
            self._mrope_rule,
        )
        return Request(
            input_ids=input_ids,
            position_ids=position_ids,
            is_visual=(input_ids == tokens.image_pad) | (input_ids == tokens.video_pad),
            visuals=visuals,
            notices=(
                *(visual.notice for visual in visuals if visual.notice),
                *list_ignored(checked),
            ),
        )

    def _count_tokens(self, media: Sequence[MediaPart], limits: Limits) -> list[int]:
        """Count the tokens of each picture and clip, from the headers alone.

        Raises:
            ContextLengthError: there are more than the context holds; no further header is read.
        """
        counts, context = [], self._manifest.context_length
        for index, part in enumerate(media):
            low, high = _narrow(part, limits)
            num_frames = len(part.sources) if part.kind == "video" else None
            size = read_size(part.sources[0])  # raises if it is not a picture
            size = find_asked_size(part, self._manifest.vision) or size
            counts.append(
                count_visual_tokens(
                    size,
                    num_frames,
                    self._manifest.pixels,
                    self._manifest.vision,
                    clip_pixels=self._clip_pixels,
                    min_pixels=low,
                    max_pixels=high,
                )
            )
            if sum(counts) >= context:
                raise ContextLengthError(
                    f"the first {index + 1} of {len(media)} pictures and clips have {sum(counts)} "
                    f"visual tokens, the model's context holds {context} with question and "
                    "answer: give fewer, or lower max_pixels"
                )
        return counts

    def _cut(self, part: MediaPart, limits: Limits) -> VisualInput:
        """Cut a picture or a clip into patches."""
        low, high = _narrow(part, limits)
        pixels, vision = self._manifest.pixels, self._manifest.vision
        size = find_asked_size(part, vision)
        if part.kind == "image":
            image = open_at_size(part.sources[0], size)
            return make_image_input(image, pixels, vision, min_pixels=low, max_pixels=high)
        frames = Frames(part.sources, size=size)
        return make_video_input(
            frames,
            pixels,
            vision,
            clip_pixels=self._clip_pixels,
            min_pixels=low,
            max_pixels=high,
        )


def _narrow(part: MediaPart, limits: Limits) -> Limits:
    """A picture's own limits count before the request's."""
    low = part.min_pixels if part.min_pixels is not None else limits[0]
    high = part.max_pixels if part.max_pixels is not None else limits[1]
    return low, high
