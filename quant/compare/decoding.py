"""Let both sides of a comparison answer as `vlmedge run` would, with repeatable draws.

A side decodes by its own settings: its end tokens, its repetition penalty, its sampling. `run`
draws with a fresh seed each time; a check fixes one for each example, the same on both sides, so
that equal models give equal answers and examples are drawn independently of each other.
"""

from __future__ import annotations

import hashlib

from ...runtime.backends.kv_cache import plan_new_tokens
from ...runtime.bundle.generation_defaults import GenerationDefaults, describe_settings
from ...runtime.options import GenerationOptions, SamplingRule, make_sampling_rule

# A check names its own
_LENGTHS = ("max_new_tokens", "max_length")


def make_own_options(example: str, max_new_tokens: int) -> GenerationOptions:
    """What `vlmedge run` asks without options, but for the length and the seed."""
    return GenerationOptions(max_new_tokens=max_new_tokens, seed=choose_seed(example))


def make_plain_options(max_new_tokens: int) -> GenerationOptions:
    """The likeliest token each time and no end: what compares two implementations of a model."""
    return GenerationOptions(
        max_new_tokens=max_new_tokens, do_sample=False, ignore_eos=True, ignore_defaults=True
    )


def choose_seed(example: str) -> int:
    """Of one example's draws: by its id alone, so that it is the same in every shard."""
    digest = hashlib.sha256(example.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little")


def limit_answer(num_prompt_tokens: int, max_new_tokens: int, context_length: int) -> int:
    """Tokens that an answer may have: what was asked for, or the room that there is.

    Raises:
        ContextLengthError: the prompt fills the context.
    """
    plan_new_tokens(num_prompt_tokens, 1, context_length)
    return min(max_new_tokens, context_length - num_prompt_tokens)


def describe_decoding(defaults: GenerationDefaults) -> str:
    """`greedy, repetition penalty 1.05`: what a report says of a side's answers."""
    rule = make_sampling_rule(GenerationOptions(), defaults)
    words = [_describe_draw(rule)]
    if rule.repetition_penalty != 1.0:
        words.append(f"repetition penalty {rule.repetition_penalty:g}")
    words += [text for text in describe_settings(defaults) if not text.startswith(_LENGTHS)]
    return ", ".join(words)


def _describe_draw(rule: SamplingRule) -> str:
    if not rule.do_sample:
        return "greedy"
    limits = f"temperature {rule.temperature:g}, top_k {rule.top_k}, top_p {rule.top_p:g}"
    return f"sampled with a fixed seed an example ({limits})"
