"""What a caller asks of one answer: limits, sampling, stops; checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .manifest import GenerationDefaults

DEFAULT_MAX_NEW_TOKENS = 512
MAX_TEMPERATURE, MAX_PENALTY = 100.0, 100.0

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated; None means: as the checkpoint's generation config says.

    Sampling is on if `do_sample` says so. If it is None, then naming a temperature, top_k or top_p
    turns sampling on (temperature 0 and top_k 1 are greedy), and naming none of them leaves the
    choice to the checkpoint. A seed alone changes nothing about that.

    Attributes:
        max_new_tokens: the longest answer, in tokens; None: what fits the context, at most 512.
        do_sample: False: always the likeliest token.
        temperature: logits are divided by it before sampling.
        top_k: sample among the k likeliest tokens (ties with the last are in); 0: among all.
        top_p: sample among the fewest likeliest tokens that hold this share of probability.
        repetition_penalty: over 1 makes tokens of the prompt and the answer less likely.
        seed: of this request's own random generator; None: a fresh one.
        stop: strings that end the answer; they are not part of its text.
        ignore_eos: run on to max_new_tokens whatever the model says; for measurements.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop is {stop!r}, needed strings that are not empty")
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("top_k", self.top_k, 0)
        _check_int("seed", self.seed, 0)
        _check_float("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, MAX_PENALTY)
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty is 0, needed more; 1 turns it off")
        if self.do_sample and self.temperature == 0:
            raise ValueError(
                "do_sample needs a temperature over 0, got 0; leave it out to be greedy"
            )


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """The options of one request with every default filled in."""

    do_sample: bool
    temperature: float
    top_k: int  # 0: off
    top_p: float
    repetition_penalty: float
    seed: int | None


def make_sampling_rule(options: GenerationOptions, defaults: GenerationDefaults) -> SamplingRule:
    """Fill in the bundle's defaults; a rule that can only pick the likeliest token is greedy."""
    named = (options.temperature, options.top_k, options.top_p)
    do_sample = options.do_sample
    if do_sample is None:
        do_sample = defaults.do_sample or any(value is not None for value in named)
    temperature = defaults.temperature if options.temperature is None else options.temperature
    top_k = defaults.top_k if options.top_k is None else options.top_k
    penalty = options.repetition_penalty
    return SamplingRule(
        do_sample=do_sample and temperature > 0 and top_k != 1,
        temperature=temperature,
        top_k=top_k,
        top_p=defaults.top_p if options.top_p is None else options.top_p,
        repetition_penalty=defaults.repetition_penalty if penalty is None else penalty,
        seed=options.seed,
    )


def _check_int(name: str, value: int | None, low: int) -> None:
    if value is not None and (type(value) is not int or value < low):
        raise ValueError(f"{name} is {value!r}, needed an integer of at least {low}")


def _check_float(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, needed a number from {low:g} to {high:g}")
