"""Prompts as transformers makes them of a checkpoint folder: its template, tokenizer and expansion.

Nothing of our own reading is in them, so that a template or tokenizer that we read wrongly shows.
The processor as a whole needs torchvision (for clips), so its parts are called: the files are
found, rendered and encoded by transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen2VLProcessor

from ...runtime.errors import PromptError
from ...runtime.inputs.messages import Message, TextPart


class TransformersPrompts:
    """The prompts of one checkpoint."""

    def __init__(self, folder: Path, image_pad: int, video_pad: int) -> None:
        """Load tokenizer and template.

        Args:
            folder: of the checkpoint.
            image_pad: id of the token that is repeated for a picture.
            video_pad: of a clip.

        Raises:
            ValueError: transformers finds no chat template.
        """
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor, _ = Qwen2VLProcessor.get_processor_dict(folder, local_files_only=True)
        template = processor.get("chat_template") or self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            raise ValueError(f"transformers finds no chat template in {folder}")
        self.template: str = template
        self._pads = [self._tokenizer.convert_ids_to_tokens(i) for i in (image_pad, video_pad)]
        self._kinds = dict(zip(self._pads, ("image", "video"), strict=True))

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names that templates see."""
        return dict(self._tokenizer.special_tokens_map)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end token."""
        return self._tokenizer.eos_token_id

    def has_special_token(self, messages: Sequence[Message]) -> bool:
        """Whether a text spells an added token, which transformers would take for the token.

        The runtime takes it as text, so such prompts are no fair comparison.
        """
        names = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]
        texts = (part.text for m in messages for part in m.parts if isinstance(part, TextPart))
        return any(name in text for text in texts for name in names)

    def encode(self, messages: Sequence[Message], num_visual_tokens: Sequence[int]) -> list[int]:
        """Render, expand and encode.

        Args:
            messages: checked.
            num_visual_tokens: of each picture and clip, in order.

        Raises:
            PromptError: the template writes other pads than the messages show.
        """
        text = self._tokenizer.apply_chat_template(
            [_write_turn(message) for message in messages],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        pieces, counts = [], iter(num_visual_tokens)
        for piece in self._split(text):
            if piece in self._kinds:
                pieces.append(piece * next(counts, 0))
            else:
                pieces.append(piece)
        written = sum(text.count(pad) for pad in self._pads)
        if written != len(num_visual_tokens):
            raise PromptError(
                f"transformers' prompt has {written} pads for {len(num_visual_tokens)} pictures"
            )
        return self._tokenizer("".join(pieces))["input_ids"]

    def _split(self, text: str) -> list[str]:
        pieces = [text]
        for pad in self._pads:
            cut = []
            for piece in pieces:
                if piece in self._kinds:
                    cut.append(piece)
                    continue
                first, *rest = piece.split(pad)
                cut.append(first)
                for part in rest:
                    cut += [pad, part]
            pieces = cut
        return pieces


def _write_turn(message: Message) -> dict[str, Any]:
    if message.is_plain and isinstance(message.parts[0], TextPart):
        return {"role": message.role, "content": message.parts[0].text}
    content = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": part.kind}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}
