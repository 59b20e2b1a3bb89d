"""Recognize the names that a wrapped model gives its tensors, and say how to save it unwrapped.

transformers does not know these names: it leaves the tensors out and fills the model with random
weights. So they are never read; one line names the wrapper instead of twenty tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from .tensors import hub_name

# What puts the word before, or between, the parts of a name, and how to get rid of it
_WRAPPERS = {
    "module.": "DistributedDataParallel or DeepSpeed; save model.module instead of model",
    "_orig_mod.": "torch.compile; save model._orig_mod instead of model",
    "_fsdp_wrapped_module.": "FSDP; save the full state dict of the unwrapped model",
    "_checkpoint_wrapped_module.": "activation checkpointing; save the unwrapped model",
    "base_model.model.": "PEFT; call merge_and_unload() before save_pretrained",
    "language_model.model.": "a language model inside another class; rename them to model.",
}
_LORA_PARTS = (".base_layer.", ".lora_A.", ".lora_B.", ".lora_magnitude_vector.")


def explain_wrapped(names: Iterable[str], expected: Collection[str]) -> str | None:
    """One line about tensors whose names only a prefix keeps from being the model's.

    Args:
        names: of the stored tensors, as `hub_name` leaves them.
        expected: names the model has.

    Returns:
        What is wrong and what to do; None where no prefix explains it.
    """
    unknown = [name for name in names if name not in expected]
    adapted = [name for name in unknown if any(part in name for part in _LORA_PARTS)]
    if adapted:
        return (
            f"the weights are those of an unmerged PEFT model ({adapted[0]!r}), which transformers "
            "does not load: call merge_and_unload() before save_pretrained, or save the adapter "
            "alone and export with --adapter"
        )
    found: Counter[str] = Counter()
    for name in unknown:
        if prefix := _find_prefix(name, expected):
            found[prefix] += 1
    if not found:
        return None
    prefix, count = found.most_common(1)[0]
    advice = _WRAPPERS.get(prefix)
    cause = f" (from {advice.split('; ')[0]})" if advice else ""
    fix = advice.split("; ")[1] if advice else f"rename the tensors without {prefix!r}"
    return (
        f"{count} tensors carry {prefix!r} in their names{cause}; transformers would not find "
        f"them and run on random weights: {fix}"
    )


def _find_prefix(name: str, expected: Collection[str]) -> str | None:
    """The part without which a name is the model's."""
    for wrapper in _WRAPPERS:
        if wrapper in name:
            bare = name.replace(wrapper, "")
            if _is_known(bare, expected) or _is_known(f"model.{bare}", expected):
                return wrapper
    prefix, rest = "", name
    while "." in rest:
        head, rest = rest.split(".", 1)
        prefix += f"{head}."
        if _is_known(rest, expected):
            return prefix
    return None


def _is_known(name: str, expected: Collection[str]) -> bool:
    known = hub_name(name)
    return known in expected or known == "lm_head.weight"
