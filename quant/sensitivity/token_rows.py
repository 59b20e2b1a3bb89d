"""Token rows as a quantized embedding table would give them, for the tokens of a prompt alone."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.embeddings import Embeddings
from ..graph.feeds import Prompt
from ..graph.stages import Tensors
from ..quantize.bundle import TABLE
from ..quantize.layer_error import dequantize
from ..quantize.plan import LM_HEAD
from ..rounding.fp8 import pack_table_rows, unpack_table_rows
from .mixer import Choice, Mixer


class TableRounder:
    """Rounds the rows of text in decoder inputs; those of pictures are left alone."""

    def __init__(self, table: Embeddings, mixer: Mixer) -> None:
        self._table, self._mixer = table, mixer

    def round(self, feed: Tensors, prompt: Prompt, choice: Choice) -> None:
        """Change a decoder input in place.

        Args:
            feed: of `make_decoder_feed`.
            prompt: the same.
            choice: the table's format under its name; of "lm_head" the head's own as well.
        """
        token_ids = np.concatenate([prompt.request.input_ids, prompt.answer_ids])
        is_text = np.ones(len(token_ids), bool)
        is_text[: len(prompt.request.is_visual)] = ~prompt.request.is_visual
        rows = self._read(token_ids[is_text], choice)
        feed["inputs_embeds"][0, is_text] = rows

    def _read(self, token_ids: NDArray[np.int64], choice: Choice) -> NDArray[np.float32]:
        size, format = self._table.hidden_size, choice[TABLE]
        if format == "lm_head":
            head_format = next(f for f in self._mixer.list_formats(LM_HEAD))
            head = self._mixer.find(LM_HEAD, choice.get(LM_HEAD, head_format)).quantized
            some = dataclasses.replace(
                head, codes=head.codes[token_ids], scales=head.scales[token_ids]
            )
            return dequantize(some, size)
        rows = np.empty((len(token_ids), size), np.float32)
        self._table.gather(token_ids, rows)
        return unpack_table_rows(*pack_table_rows(rows, format))  # type: ignore[arg-type]
