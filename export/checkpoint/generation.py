"""Read generation_config.json as the bundle's defaults of generation.

As transformers 5.24 resolves it: where the file is missing, config.json's keys of the same names
count, the outermost before text_config's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle.generation_defaults import MAX_COUNT, GenerationDefaults, check_defaults
from .files.json_file import read_json
from .files.origin import Found, Origin
from .keys.generation import RULES, SECTION
from .keys.rules import check_keys

TRANSFORMERS_TOP_K = 50  # of generate(), for a checkpoint that samples and names no other
# What transformers 4 wrote into every config.json, whether it was meant or not
OLD_MAX_LENGTH = 20
_OLD_DEFAULTS = dataclasses.asdict(
    GenerationDefaults(max_length=OLD_MAX_LENGTH, top_k=TRANSFORMERS_TOP_K)
)
NO_VOCABULARY = MAX_COUNT  # of a check that doesn't know it: every id is one
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p")


def read_generation_defaults(folder: Path, vocab_size: int | None = None) -> GenerationDefaults:
    """What the checkpoint says about generating; see `find_generation_defaults`."""
    return find_generation_defaults(folder, vocab_size).value


def find_generation_defaults(
    folder: Path, vocab_size: int | None = None
) -> Found[GenerationDefaults]:
    """What the checkpoint says about generating, and where.

    Args:
        folder: of the checkpoint.
        vocab_size: of the model; None: token ids are not compared with it.

    Raises:
        ValueError: a setting that is refused, or a value of the wrong kind.
    """
    path = folder / SECTION
    config_path = folder / "config.json"
    config = read_json(config_path) if config_path.exists() else {}
    legacy = _pick_legacy(config)
    remarks: list[str] = []
    if path.exists():
        values, file = read_json(path), SECTION
        remarks += check_keys(SECTION, values, RULES)
        ignored = [
            key
            for key, value in legacy.items()
            if key in _FIELDS and value not in (values.get(key), _OLD_DEFAULTS.get(key))
        ]
        if ignored:
            remarks.append(
                f"config.json: {', '.join(sorted(ignored))}: transformers reads no generation "
                f"settings there beside {SECTION}"
            )
    else:
        values, file = legacy, "config.json"
        if values.get("max_length") == OLD_MAX_LENGTH:
            del values["max_length"]
            remarks.append(f"config.json: max_length {OLD_MAX_LENGTH} is an old default, left out")
        check_keys(file, values, [dataclasses.replace(rule, section=file) for rule in RULES])
    try:
        found = resolve_generation(values, vocab_size)
    except ValueError as error:
        raise ValueError(f"{folder / file}: {error}") from error
    origins = tuple(
        dataclasses.replace(origin, file=file) if origin.key is not None else origin
        for origin in found.origins
    )
    return Found(found.value, origins, (*remarks, *found.unusual))


def resolve_generation(
    values: Mapping[str, Any], vocab_size: int | None = None
) -> Found[GenerationDefaults]:
    """Keys of a GenerationConfig -> the settings that count.

    Args:
        values: as parsed, or `GenerationConfig.to_dict()`; None counts as absent.
        vocab_size: of the model; None: token ids are not compared with it.

    Returns:
        The settings; origins without a file; remarks about values that transformers passes over.

    Raises:
        ValueError: names the key, what was got and what was needed.
    """
    reader = _Reader(values, vocab_size)
    do_sample = reader.flag("do_sample")
    min_new_tokens = reader.count("min_new_tokens")
    max_new_tokens = reader.positive("max_new_tokens")
    sampling = reader.sampling(do_sample)
    defaults = GenerationDefaults(
        do_sample=do_sample,
        **sampling,
        repetition_penalty=reader.number("repetition_penalty", 1.0),
        max_new_tokens=max_new_tokens,
        max_length=reader.positive("max_length") if max_new_tokens is None else None,
        min_new_tokens=min_new_tokens,
        min_length=reader.count("min_length") or 0 if min_new_tokens is None else 0,
        stop_strings=reader.strings("stop_strings"),
        epsilon_cutoff=reader.cutoff("epsilon_cutoff"),
        eta_cutoff=reader.cutoff("eta_cutoff"),
        encoder_repetition_penalty=reader.number("encoder_repetition_penalty", 1.0),
        no_repeat_ngram_size=reader.count("no_repeat_ngram_size") or 0,
        encoder_no_repeat_ngram_size=reader.count("encoder_no_repeat_ngram_size") or 0,
        bad_words_ids=reader.sequences("bad_words_ids"),
        sequence_bias=reader.biases("sequence_bias"),
        forced_eos_token_id=reader.ids("forced_eos_token_id", may_be_one=True),
        exponential_decay_length_penalty=reader.decay("exponential_decay_length_penalty"),
        suppress_tokens=reader.known_ids("suppress_tokens"),
        begin_suppress_tokens=reader.known_ids("begin_suppress_tokens"),
        remove_invalid_values=reader.flag("remove_invalid_values"),
    )
    forced = set(defaults.forced_eos_token_id)
    if forced and forced <= set(defaults.suppress_tokens):
        raise ValueError("forced_eos_token_id holds only tokens of suppress_tokens")
    check_defaults(defaults, NO_VOCABULARY if vocab_size is None else vocab_size)
    origins = tuple(
        Origin(
            f"generation.{name}",
            getattr(defaults, name),
            key=name if values.get(name) is not None else None,
        )
        for name in _FIELDS
    )
    return Found(defaults, origins, tuple(reader.remarks))


_FIELDS = tuple(field.name for field in dataclasses.fields(GenerationDefaults))


def _pick_legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """The generation settings of config.json, which transformers 4 kept there."""
    text = config.get("text_config")
    sections = (text if isinstance(text, Mapping) else {}, config)
    return {
        rule.key: section[rule.key]
        for section in sections
        for rule in RULES
        if section.get(rule.key) is not None
    }


class _Reader:
    """Reads values one by one; keeps remarks about those that have no effect."""

    def __init__(self, values: Mapping[str, Any], vocab_size: int | None) -> None:
        self.remarks: list[str] = []
        self._values = values
        self._vocab_size = vocab_size

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if value not in (None, True, False) or type(value) is int or type(value) is float:
            raise _wrong(key, value, "true or false")
        return value is True

    def number(self, key: str, default: float) -> float:
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise _wrong(key, value, "a number")
        return float(value)

    def count(self, key: str) -> int | None:
        """A number of tokens; below 0 it asks for nothing."""
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) is not int:
            raise _wrong(key, value, "an integer")
        return min(max(value, 0), MAX_COUNT)

    def positive(self, key: str) -> int | None:
        count = self.count(key)
        if count == 0:
            raise _wrong(key, self._values[key], "an integer of at least 1")
        return count

    def cutoff(self, key: str) -> float:
        """A probability; transformers turns it off at 0 and below, and from 1 on."""
        value = self.number(key, 0.0)
        return value if 0 < value < 1 else 0.0

    def sampling(self, do_sample: bool) -> dict[str, Any]:
        """The limits of sampling; without it, transformers never looks at them."""
        default = GenerationDefaults(top_k=TRANSFORMERS_TOP_K if do_sample else 0)
        read: dict[str, Any] = {}
        for key in _OF_SAMPLING:
            value = self._values.get(key)
            if value is None:
                read[key] = getattr(default, key)
                continue
            if type(value) not in (int, float) or (key == "top_k" and type(value) is not int):
                raise _wrong(key, value, "an integer" if key == "top_k" else "a number")
            value = value if key == "top_k" else float(value)
            if key == "typical_p" and value > 1:  # off, as transformers has it
                value = 1.0
            try:
                check_defaults(dataclasses.replace(default, **{key: value}), NO_VOCABULARY)
            except ValueError:
                if do_sample:
                    raise
                self.remarks.append(f"{key} {value!r} has no effect: the checkpoint doesn't sample")
                value = getattr(default, key)
            read[key] = value
        if do_sample and read["temperature"] == 0:
            self.remarks.append("temperature is 0: answers are greedy; transformers refuses it")
        return read

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key)
        strings = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
            raise _wrong(key, value, "a string or a list of strings")
        return tuple(strings)

    def ids(self, key: str, *, may_be_one: bool = False) -> tuple[int, ...]:
        value = self._values.get(key)
        ids = [value] if may_be_one and type(value) is int else [] if value is None else value
        if not _is_ids(ids):
            raise _wrong(key, value, "a list of token ids")
        return tuple(ids)

    def known_ids(self, key: str) -> tuple[int, ...]:
        """Ids that are tokens, each once: the others, and a list without any, forbid nothing."""
        ids = dict.fromkeys(self.ids(key))
        size = MAX_COUNT if self._vocab_size is None else self._vocab_size
        known = tuple(token_id for token_id in ids if 0 <= token_id < size)
        if unknown := [token_id for token_id in ids if not 0 <= token_id < size]:
            self.remarks.append(f"{key}: no tokens of the model: {unknown!r:.80}")
        return known

    def sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not value or not all(map(_is_ids, value)):
            raise _wrong(key, value, "a list of lists of token ids, not empty")
        return tuple(tuple(ids) for ids in value if ids)

    def biases(self, key: str) -> tuple[tuple[tuple[int, ...], float], ...]:
        value = self._values.get(key)
        if value is None:
            return ()
        needed = "a list of pairs of token ids and a number, [[[13, 5], -2.5]], not empty"
        if not isinstance(value, list | tuple) or not value:
            raise _wrong(key, value, needed)
        for pair in value:
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            if not is_pair or not _is_ids(pair[0]) or type(pair[1]) not in (int, float):
                raise _wrong(key, value, needed)
        return tuple((tuple(ids), float(bias)) for ids, bias in value if ids)

    def decay(self, key: str) -> tuple[int, float] | None:
        value = self._values.get(key)
        if value is None:
            return None
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        if not is_pair or type(value[0]) is not int or type(value[1]) not in (int, float):
            raise _wrong(key, value, "[number of tokens, factor]")
        return value[0], float(value[1])


def _is_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(token_id) is int for token_id in value)


def _wrong(key: str, value: object, needed: str) -> ValueError:
    return ValueError(f"{key} is {value!r:.80}, needed {needed}")
