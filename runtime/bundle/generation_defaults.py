"""The generation settings of a checkpoint that hold for every answer, as a bundle keeps them.

Names and meanings are those of transformers' GenerationConfig. A default means "off", so that a
bundle that doesn't name a setting answers without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_SEQUENCES = 10_000  # of token ids that are forbidden or biased
MAX_SEQUENCE_IDS = 100_000  # ids of all these sequences together
MAX_STOP_STRINGS, MAX_STOP_CHARS = 100, 4096
MAX_COUNT = 2**31 - 1  # of tokens; counts beyond any context are allowed, they never take effect
MAX_TEMPERATURE, MAX_PENALTY = 100.0, 100.0


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The checkpoint's generation_config.json, as far as it changes answers.

    Attributes:
        do_sample: draw tokens; False takes the likeliest.
        top_k: 0: off.
        max_new_tokens: the longest answer of a request that names none.
        max_length: the same, counted with the prompt; max_new_tokens goes before it.
        min_new_tokens: no end token before so many; None: min_length counts.
        min_length: the same, counted with the prompt.
        stop_strings: an answer ends with the token that completes one; its text stays.
        top_h: share of the entropy of the 100 likeliest tokens; None: off, which 1 is not.
        bad_words_ids: sequences whose last token is forbidden after the others.
        sequence_bias: sequences whose last token gets the bias after the others.
        forced_eos_token_id: the only tokens allowed as the last one of the token limit.
        exponential_decay_length_penalty: after so many tokens, the factor that makes the end
            tokens likelier with each further one.
        remove_invalid_values: NaN becomes 0, infinity the largest number, instead of an error.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    stop_strings: tuple[str, ...] = ()
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    remove_invalid_values: bool = False


_OF_SAMPLING = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_SHOWN_ELSEWHERE = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def describe_settings(defaults: GenerationDefaults) -> tuple[str, ...]:
    """The settings that are on, beside the five best known: `suppress_tokens (3)`, `min_p 0.1`."""
    words = []
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        if field.name in _SHOWN_ELSEWHERE or value == field.default:
            continue
        if field.name in _OF_SAMPLING and not defaults.do_sample:
            continue
        if field.name == "exponential_decay_length_penalty":
            words.append(f"{field.name} {value[1]:g} after {value[0]} tokens")
        elif isinstance(value, tuple):
            words.append(f"{field.name} ({len(value)})")
        elif isinstance(value, bool):
            words.append(field.name)
        else:
            words.append(f"{field.name} {value if isinstance(value, int) else format(value, 'g')}")
    return tuple(words)


def check_defaults(defaults: GenerationDefaults, vocab_size: int) -> None:
    """See that every value is one that an answer can be generated with.

    Raises:
        ValueError: names the setting, its value and what it may be.
    """
    for name, low, high in (
        ("temperature", 0.0, MAX_TEMPERATURE),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("epsilon_cutoff", 0.0, 1.0),
        ("eta_cutoff", 0.0, 1.0),
    ):
        if not low <= (value := getattr(defaults, name)) <= high:
            raise ValueError(f"{name} is {value!r}, needed a number from {low:g} to {high:g}")
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        if not 0 < (value := getattr(defaults, name)) <= MAX_PENALTY:
            raise ValueError(
                f"{name} is {value!r}, needed a number over 0 and up to {MAX_PENALTY:g}"
            )
    for name in ("typical_p", "top_h"):
        if (value := getattr(defaults, name)) is not None and not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}, needed a number over 0 and up to 1")
    for name, low in (
        ("top_k", 0),
        ("max_new_tokens", 1),
        ("max_length", 1),
        ("min_new_tokens", 0),
        ("min_length", 0),
        ("no_repeat_ngram_size", 0),
        ("encoder_no_repeat_ngram_size", 0),
    ):
        value = getattr(defaults, name)
        if value is not None and not low <= value <= MAX_COUNT:
            raise ValueError(f"{name} is {value!r}, needed an integer of {low} to {MAX_COUNT}")
    decay = defaults.exponential_decay_length_penalty
    if decay and not (abs(decay[0]) <= MAX_COUNT and 0 < decay[1] <= MAX_PENALTY):
        raise ValueError(
            f"exponential_decay_length_penalty is {list(decay)}, needed a number of tokens and a "
            f"factor over 0 and up to {MAX_PENALTY:g}"
        )
    check_stop_strings("stop_strings", defaults.stop_strings)
    check_sequences("bad_words_ids", defaults.bad_words_ids)
    check_sequences("sequence_bias", [ids for ids, _ in defaults.sequence_bias])
    if bad := [bias for _, bias in defaults.sequence_bias if not math.isfinite(bias)]:
        raise ValueError(f"sequence_bias holds the bias {bad[0]!r}, needed finite numbers")
    check_ids(list_ids(defaults), vocab_size)


def check_stop_strings(name: str, strings: Iterable[str]) -> None:
    """See that stop strings are few enough to be looked for after every token.

    Raises:
        ValueError: an empty one, or too many characters.
    """
    strings = tuple(strings)
    if not all(strings):
        raise ValueError(f"{name} holds an empty string, which would end every answer at once")
    if len(strings) > MAX_STOP_STRINGS or max(map(len, strings), default=0) > MAX_STOP_CHARS:
        raise ValueError(
            f"{name} holds {len(strings)} strings of up to {max(map(len, strings))} characters, "
            f"at most {MAX_STOP_STRINGS} of {MAX_STOP_CHARS} are allowed"
        )


def check_sequences(name: str, sequences: Iterable[tuple[int, ...]]) -> None:
    """See that sequences can be compared with an answer's end after every token.

    Raises:
        ValueError: too many, or one without ids.
    """
    sequences = tuple(sequences)
    num_ids = sum(map(len, sequences))
    if len(sequences) > MAX_SEQUENCES or num_ids > MAX_SEQUENCE_IDS:
        raise ValueError(
            f"{name} holds {len(sequences)} sequences with {num_ids} token ids, at most "
            f"{MAX_SEQUENCES} with {MAX_SEQUENCE_IDS} are allowed"
        )
    if not all(sequences):
        raise ValueError(f"{name} holds a sequence without token ids")


def check_ids(ids_by_name: Iterable[tuple[str, Iterable[int]]], vocab_size: int) -> None:
    """See that ids are tokens of the model.

    Raises:
        ValueError: names the setting and the first id that is none, or a list that is too long.
    """
    for name, token_ids in ids_by_name:
        count = 0
        for token_id in token_ids:
            count += 1
            if not 0 <= token_id < vocab_size:
                raise ValueError(
                    f"{name} holds {token_id!r:.80}, which is not one of the {vocab_size} token ids"
                )
        if count > max(vocab_size, MAX_SEQUENCE_IDS):
            raise ValueError(f"{name} holds {count} token ids, the model has {vocab_size}")


def list_ids(settings: GenerationDefaults) -> list[tuple[str, list[int]]]:
    """Every token id that the settings name, by setting."""
    return [
        ("suppress_tokens", list(settings.suppress_tokens)),
        ("begin_suppress_tokens", list(settings.begin_suppress_tokens)),
        ("forced_eos_token_id", list(settings.forced_eos_token_id)),
        ("bad_words_ids", [i for ids in settings.bad_words_ids for i in ids]),
        ("sequence_bias", [i for ids, _ in settings.sequence_bias for i in ids]),
    ]
