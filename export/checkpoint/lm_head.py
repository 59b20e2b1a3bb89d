"""Decide by the stored tensors whether the lm_head is tied to the embeddings, as transformers does.

transformers 5 ties the two only where the file holds one of them, or both with equal values; 4.x
tied them whenever the config said so. A trained head is kept, as 5 does, and the user is told.
"""

from __future__ import annotations

import dataclasses

from .config import ModelSpec
from .weights.same_values import are_same
from .weights.tensor_source import TensorSource

EMBEDDINGS = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def settle_head(
    spec: ModelSpec, tensors: dict[str, TensorSource]
) -> tuple[ModelSpec, dict[str, TensorSource], tuple[str, ...]]:
    """The spec with the head tied or not, the tensors to match, and remarks for the user.

    Raises:
        ValueError: an untied head that no file holds.
    """
    head, table = tensors.get(LM_HEAD), tensors.get(EMBEDDINGS)
    if not spec.tied_lm_head:
        if head is None and table is not None:
            raise ValueError(
                f"config.json says tie_word_embeddings false, but no {LM_HEAD} is stored, and "
                "transformers would fill it at random: save the model with its head, or set "
                "tie_word_embeddings to true if it shares the embeddings"
            )
        return spec, tensors, ()
    if head is None:
        return spec, tensors, ()
    if table is None:
        return spec, _without_head(tensors) | {EMBEDDINGS: head}, ()
    if are_same(head, table):
        return spec, _without_head(tensors), ()
    remark = (
        f"tie_word_embeddings is true, but the stored {LM_HEAD} differs from the embeddings: it is "
        "used as an lm_head of its own, as transformers 5 does (4.x used the embeddings)"
    )
    return dataclasses.replace(spec, tied_lm_head=False), tensors, (remark,)


def _without_head(tensors: dict[str, TensorSource]) -> dict[str, TensorSource]:
    return {name: tensor for name, tensor in tensors.items() if name != LM_HEAD}
