"""Check that a new bundle's small files can make a request, before the bundle gets its name.

A tokenizer that the library reads and this runtime refuses, or a template that writes no pad for a
picture, would otherwise only be noticed on the device.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Manifest, TokenIds
from ..errors import BundleError
from .request import RequestMaker

QUESTION = "What is the total?"


def check_requests(folder: Path, manifest: Manifest) -> None:
    """Prepare a question about one small picture, up to the arrays that the graphs would get.

    Every bundle must be able to answer a question about a picture. A template that has no clips, no
    system message or no text without pictures says so when it is asked for one.

    Args:
        folder: a bundle that holds at least the tokenizer and the chat template.
        manifest: the bundle's manifest; files and hashes are not compared with it.

    Raises:
        BundleError: names the file and what is wrong with it.
    """
    size = manifest.vision.patch_size * manifest.vision.spatial_merge_size
    picture = np.zeros((size, size, 3), np.uint8)
    part = {"type": "image", "image": picture}
    content = [part, {"type": "text", "text": QUESTION}]
    used = f"{manifest.tokenizer_file} and {manifest.chat_template_file}"
    try:
        maker = RequestMaker(folder, manifest, None)
        used = manifest.tokenizer_file
        vocab_size, eos = manifest.decoder.vocab_size, manifest.tokens.eos
        if not eos or not all(0 <= token_id < vocab_size for token_id in eos):
            raise BundleError(f"the end tokens {list(eos)} are not among {vocab_size} tokens")
        maker.tokenizer.check_alphabet()
        maker.tokenizer.encode_text(QUESTION)
        used = manifest.chat_template_file
        request = maker.make([{"role": "user", "content": content}])
        if not 0 <= request.input_ids.min() <= request.input_ids.max() < vocab_size:
            raise BundleError(f"the prompt has token ids beyond the model's {vocab_size} tokens")
        _check_delimiters(request.input_ids, request.is_visual, manifest.tokens)
    except ValueError as error:
        text = str(error).replace(f"{folder}/", "")
        raise BundleError(
            f"the bundle could not answer a question about a picture ({used}): {text}"
        ) from error


def _check_delimiters(
    input_ids: NDArray[np.int64], is_visual: NDArray[np.bool_], tokens: TokenIds
) -> None:
    """Check that one picture stands between one vision start and one vision end.

    Some versions of transformers find a picture's positions by its start, others by its pads; they
    agree where both are there.
    """
    first, last = np.flatnonzero(is_visual)[[0, -1]]
    before, after = input_ids[:first], input_ids[last + 1 :]
    if not (
        before[-1:].tolist() == [tokens.vision_start]
        and after[:1].tolist() == [tokens.vision_end]
        and np.count_nonzero(input_ids == tokens.vision_start) == 1
    ):
        raise BundleError(
            "the chat template doesn't put a picture between one vision start and one vision end "
            f"(tokens {tokens.vision_start} and {tokens.vision_end})"
        )
