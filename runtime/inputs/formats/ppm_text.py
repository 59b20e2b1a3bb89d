"""Refuse PPM files, and their kin, with absurdly long headers or very many comments.

Pillow reads the header byte by byte. Where pixels are written as text, it cuts comments out of them
one at a time, copying up to a megabyte for each.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from ...errors import ImageError

MAX_HEADER_BYTES = 1 << 16
MAX_COMMENTS = 1000  # among pixels that are written as text

_KINDS = b"0123456fy"  # the letter after the P, as Pillow knows it
_PLAIN = b"123"
_NUM_TOKENS = {b"P1": 3, b"P4": 3}  # with the kind itself; others also have a largest level
_COMMENT = re.compile(rb"#[^\r\n]*")
_BLOCK_BYTES = 1 << 20


def check_ppm(file: BinaryIO, name: str) -> None:
    """Check a PBM, PGM, PPM or PFM file's header and comments; any other file is left alone.

    Args:
        file: at its start; its position is anywhere afterwards.
        name: how errors call the picture.

    Raises:
        ImageError: the header is over `MAX_HEADER_BYTES`, or there are over `MAX_COMMENTS`.
    """
    head = file.read(2)
    if len(head) < 2 or head[:1] != b"P" or head[1] not in _KINDS:
        return
    block = head + file.read(MAX_HEADER_BYTES - 2)
    if len(block) == MAX_HEADER_BYTES:
        tokens = _COMMENT.sub(b"", block).split(maxsplit=4)
        if len(tokens) < _NUM_TOKENS.get(head, 4):
            raise ImageError(
                f"{name} is a PPM whose header takes over {MAX_HEADER_BYTES} bytes: save the "
                "picture anew if you trust it"
            )
    if head[1] not in _PLAIN:
        return
    num_comments = 0
    while block and num_comments <= MAX_COMMENTS:
        num_comments += block.count(b"#")
        block = file.read(_BLOCK_BYTES)
    if num_comments > MAX_COMMENTS:
        raise ImageError(
            f"{name} is a PPM of over {MAX_COMMENTS} comments: save the picture anew if you trust "
            "it"
        )
