"""The options of one answer: limits, sampling, stops; checked when they are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .bundle.generation_defaults import (
    MAX_PENALTY,
    MAX_TEMPERATURE,
    GenerationDefaults,
    check_ids,
    check_sequences,
    check_stop_strings,
)

DEFAULT_MAX_NEW_TOKENS = 512  # where neither the request nor the checkpoint names a number

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated; None means: as the checkpoint's generation config says.

    Sampling is on if `do_sample` says so. If it is None, then naming a temperature, top_k, top_p,
    min_p or typical_p turns sampling on (temperature 0 and top_k 1 are greedy), and naming none of
    them leaves the choice to the checkpoint. A seed alone changes nothing about that.

    Attributes:
        max_new_tokens: the longest answer, in tokens; None: the checkpoint's, or at most 512, as
            far as the context has room.
        min_new_tokens: end tokens are forbidden before so many tokens; 0: off.
        do_sample: False: always the likeliest token.
        temperature: logits are divided by it before sampling.
        top_k: sample among the k likeliest tokens (ties with the last are in); 0: among all.
        top_p: sample among the fewest likeliest tokens that hold this share of probability.
        min_p: sample among the tokens with at least this share of the likeliest one's probability;
            0: off.
        typical_p: sample among the tokens of the most typical information that hold this share of
            probability; 1: off.
        repetition_penalty: over 1 makes tokens of the prompt and the answer less likely.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in prompt and answer;
            0: off.
        suppress_tokens: ids that never appear in the answer.
        bad_words_ids: sequences of ids that never appear in full in the answer.
        seed: of this request's own random generator; None: a fresh one.
        stop: strings that end the answer; they are not part of its text. None: the checkpoint's
            stop strings, which stay in the text, as in transformers; () is none.
        ignore_eos: run on to max_new_tokens whatever the model says; for measurements.
        ignore_defaults: take nothing from the checkpoint's generation config: what isn't named is
            off, and answers are greedy.
        skip_special_tokens: False leaves special tokens in the text, such as
            `<|box_start|>(10,20),(30,40)<|box_end|>`; the token that ends the answer never is.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    ignore_eos: bool = False
    min_new_tokens: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    no_repeat_ngram_size: int | None = None
    suppress_tokens: tuple[int, ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    ignore_defaults: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.stop is not None:
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            object.__setattr__(self, "stop", stop)
            if not all(isinstance(text, str) and text for text in stop):
                raise ValueError(f"stop is {stop!r:.200}, needed strings that are not empty")
            check_stop_strings("stop", stop)
        self._freeze_ids()
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("min_new_tokens", self.min_new_tokens, 0)
        _check_int("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        _check_int("top_k", self.top_k, 0)
        _check_int("seed", self.seed, 0)
        _check_float("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("typical_p", self.typical_p, 0.0, 1.0)
        if self.typical_p == 0:
            raise ValueError("typical_p is 0, needed more; 1 turns it off")
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, MAX_PENALTY)
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty is 0, needed more; 1 turns it off")
        if self.do_sample and self.temperature == 0:
            raise ValueError(
                "do_sample needs a temperature over 0, got 0; leave it out to be greedy"
            )

    def _freeze_ids(self) -> None:
        """Bring lists of token ids to tuples."""
        if self.suppress_tokens is not None:
            ids = _freeze("suppress_tokens", self.suppress_tokens)
            object.__setattr__(self, "suppress_tokens", ids)
        if self.bad_words_ids is not None:
            if isinstance(self.bad_words_ids, str) or not isinstance(self.bad_words_ids, Iterable):
                raise ValueError(
                    f"bad_words_ids is {self.bad_words_ids!r:.80}, needed lists of token ids"
                )
            sequences = tuple(_freeze("bad_words_ids", ids) for ids in self.bad_words_ids)
            object.__setattr__(self, "bad_words_ids", sequences)
            check_sequences("bad_words_ids", sequences)


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """The options of one request with every default filled in.

    Attributes:
        min_new_tokens: 0: off.
        end_ids: tokens that end the answer.
        max_new_tokens: the answer's limit; None: not known, and no token is forced at its end.
    """

    do_sample: bool
    temperature: float
    top_k: int  # 0: off
    top_p: float
    repetition_penalty: float
    seed: int | None
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
    min_new_tokens: int = 0
    min_length: int = 0
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    end_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether anything is done to them beside drawing."""
        return (
            self.repetition_penalty != 1.0
            or self.encoder_repetition_penalty != 1.0
            or self.no_repeat_ngram_size > 0
            or self.encoder_no_repeat_ngram_size > 0
            or bool(self.bad_words_ids or self.sequence_bias)
            or ((self.min_new_tokens > 0 or self.min_length > 0) and bool(self.end_ids))
            or bool(self.forced_eos_token_id)
            or self.exponential_decay_length_penalty is not None
            or bool(self.suppress_tokens or self.begin_suppress_tokens)
            or self.remove_invalid_values
        )

    @property
    def draw(self) -> SamplingRule:
        """The same draw from logits that another one has changed already."""
        return SamplingRule(
            self.do_sample,
            self.temperature,
            self.top_k,
            self.top_p,
            1.0,
            self.seed,
            min_p=self.min_p,
            top_h=self.top_h,
            typical_p=self.typical_p,
            epsilon_cutoff=self.epsilon_cutoff,
            eta_cutoff=self.eta_cutoff,
        )


def make_sampling_rule(
    options: GenerationOptions,
    defaults: GenerationDefaults,
    end_ids: Iterable[int] = (),
    max_new_tokens: int | None = None,
) -> SamplingRule:
    """Fill in the bundle's defaults; a rule that can only pick the likeliest token is greedy.

    Args:
        options: of the request.
        defaults: of the bundle.
        end_ids: tokens that end an answer.
        max_new_tokens: the limit that was planned for this answer.
    """
    named = (options.temperature, options.top_k, options.top_p, options.min_p, options.typical_p)
    defaults = GenerationDefaults() if options.ignore_defaults else defaults
    do_sample = options.do_sample
    if do_sample is None:
        do_sample = defaults.do_sample or any(value is not None for value in named)

    def choose(name: str) -> Any:
        value = getattr(options, name)
        return getattr(defaults, name) if value is None else value

    temperature, top_k, min_new_tokens = map(choose, ("temperature", "top_k", "min_new_tokens"))
    return SamplingRule(
        do_sample=do_sample and temperature > 0 and top_k != 1,
        temperature=temperature,
        top_k=top_k,
        top_p=choose("top_p"),
        repetition_penalty=choose("repetition_penalty"),
        seed=options.seed,
        min_p=choose("min_p"),
        top_h=defaults.top_h,
        typical_p=choose("typical_p"),
        epsilon_cutoff=defaults.epsilon_cutoff,
        eta_cutoff=defaults.eta_cutoff,
        encoder_repetition_penalty=defaults.encoder_repetition_penalty,
        no_repeat_ngram_size=choose("no_repeat_ngram_size"),
        encoder_no_repeat_ngram_size=defaults.encoder_no_repeat_ngram_size,
        bad_words_ids=choose("bad_words_ids"),
        sequence_bias=defaults.sequence_bias,
        min_new_tokens=min_new_tokens or 0,
        min_length=defaults.min_length if min_new_tokens is None else 0,
        forced_eos_token_id=defaults.forced_eos_token_id,
        exponential_decay_length_penalty=defaults.exponential_decay_length_penalty,
        suppress_tokens=choose("suppress_tokens"),
        begin_suppress_tokens=defaults.begin_suppress_tokens,
        remove_invalid_values=defaults.remove_invalid_values,
        end_ids=() if options.ignore_eos else tuple(end_ids),
        max_new_tokens=max_new_tokens,
    )


def check_option_ids(options: GenerationOptions, vocab_size: int) -> None:
    """See that the ids of a request are tokens of the model.

    Raises:
        ValueError: names the option and the id.
    """
    words = [token_id for ids in options.bad_words_ids or () for token_id in ids]
    named = (("suppress_tokens", options.suppress_tokens or ()), ("bad_words_ids", words))
    check_ids(named, vocab_size)


def _freeze(name: str, token_ids: Any) -> tuple[int, ...]:
    if isinstance(token_ids, str) or not isinstance(token_ids, Iterable):
        raise ValueError(f"{name} holds {token_ids!r:.80}, needed a list of token ids")
    frozen = tuple(token_ids)
    if bad := [token_id for token_id in frozen if type(token_id) is not int]:
        raise ValueError(f"{name} holds {bad[0]!r:.80}, needed token ids")
    return frozen


def _check_int(name: str, value: int | None, low: int) -> None:
    if value is not None and (type(value) is not int or value < low):
        raise ValueError(f"{name} is {value!r}, needed an integer of at least {low}")


def _check_float(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, needed a number from {low:g} to {high:g}")
