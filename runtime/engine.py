"""Answer requests with the graphs of a model, one request or batch at a time."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .answer import Answer, Timings
from .backends.backend import Backend
from .backends.kv_cache import plan_capacity, plan_new_tokens
from .bundle.embeddings import Embeddings
from .bundle.guard import BundleGuard
from .bundle.manifest import Manifest
from .decode.encode import encode_visuals, make_decoder_prompt
from .decode.generate import DecoderPrompt, Generation
from .decode.sampling import Sampler
from .decode.writer import AnswerWriter, make_writer
from .inputs.request import Request
from .inputs.tokens import TextTokenizer
from .options import GenerationOptions, SamplingRule, check_option_ids, make_sampling_rule
from .steps import StepGenerator, Steps
from .turnstile import Turnstile

Cancel = Callable[[], bool] | threading.Event | None


@dataclass(frozen=True, slots=True)
class Job:
    """Requests to compute together.

    Attributes:
        requests: one a sequence of the batch.
        options: one a request.
        preprocess_s: what making the requests took.
    """

    requests: Sequence[Request]
    options: Sequence[GenerationOptions]
    preprocess_s: float


class Engine:
    """Owns the embedding table and the graphs; threads queue for it."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: TextTokenizer,
        embeddings: Embeddings,
        backend: Backend,
        guard: BundleGuard | None = None,
        make_sampler: Callable[[SamplingRule, NDArray[np.int64]], Sampler] = Sampler,
    ) -> None:
        """Take over the parts.

        Args:
            manifest: of the bundle.
            tokenizer: its tokenizer.
            embeddings: its table.
            backend: what runs its graphs.
            guard: of the files that they were read from.
            make_sampler: a check passes one that keeps the logits it sees.
        """
        self._manifest = manifest
        self._make_sampler = make_sampler
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._backend = backend
        self._guard = guard
        self._turnstile = Turnstile()
        self._is_closed = False
        # Of the job in progress; weak, so that a stream that nobody holds gives the model back
        self._current: weakref.ref[Steps] | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Where graphs run, the preferred one first."""
        return self._backend.providers

    @property
    def notices(self) -> tuple[str, ...]:
        """What makes the engine slower than it could be, a line each."""
        return (*self._backend.notices, *self._tell_replaced())

    def start(self, job: Job, cancel: Cancel) -> Steps:
        """Check that a job fits the model; the steps it returns compute it.

        Raises:
            ContextLengthError: a prompt and its answer don't fit, before anything is computed.
            ValueError: the model is closed, or options name ids it has not.
        """
        for options in job.options:
            check_option_ids(options, self._manifest.decoder.vocab_size)
        context_length = self._manifest.context_length
        limits = [
            plan_new_tokens(
                len(request.input_ids),
                options.max_new_tokens,
                context_length,
                None if options.ignore_defaults else self._manifest.generation,
            )
            for request, options in zip(job.requests, job.options, strict=True)
        ]
        self._check_open()
        steps = Steps()
        steps.begin(self._run(job, limits, _make_check(cancel), weakref.ref(steps)))
        return steps

    def close(self) -> None:
        """Free the graphs.

        A job that a thread is computing to its end gets there; a stream that is open, in this
        thread or another, is cut off after its step in progress; jobs that wait are refused.

        Raises:
            RuntimeError: called from the `cancel` function of the job in progress.
        """
        steps = self._current and self._current()
        if steps is not None and steps.is_mine:
            raise RuntimeError(
                "a model can't be closed from the cancel function of its answer: return True there"
            )
        # Before the look at the current job: one that registers later sees that it came too late
        self._is_closed = True
        steps = self._current and self._current()
        if steps is not None and not steps.is_run_to_end:
            steps.cut_off()
        with self._turnstile:
            self._backend.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the model is closed: load it again")

    def _run(
        self,
        job: Job,
        limits: list[int],
        is_cancelled: Callable[[], bool],
        steps: weakref.ref[Steps],
    ) -> StepGenerator:
        with self._turnstile:
            self._current = steps
            self._check_open()
            self._check_intact()
            writers = self._make_writers(job, limits)
            load_before, start = self._backend.load_s, time.perf_counter()
            prompts = self._encode(job.requests, is_cancelled)
            vision_s = time.perf_counter() - start - (self._backend.load_s - load_before)
            needed = [p.length + limit for p, limit in zip(prompts, limits, strict=True)]
            cache = self._backend.make_cache(len(prompts), plan_capacity(needed))
            load_s = self._backend.load_s - load_before
            generation = Generation(
                self._backend, self._embeddings, cache, prompts, writers, is_cancelled
            )
            yield from generation.run()
            self._check_intact()
            told = self._tell_replaced()
            return [
                _make_answer(
                    request,
                    writer,
                    (*request.notices, *told),
                    Timings(
                        load_s=load_s,
                        preprocess_s=job.preprocess_s,
                        vision_s=vision_s,
                        prefill_s=generation.prefill_s,
                        decode_s=generation.decode_s,
                        decode_tokens_per_s=_measure_speed(writer, generation.decode_s),
                    ),
                    self._backend.providers,
                )
                for request, writer in zip(job.requests, writers, strict=True)
            ]

    def _check_intact(self) -> None:
        """The table is mapped into memory: where its file is written to, it changes."""
        if self._guard is not None:
            self._guard.check_intact()

    def _tell_replaced(self) -> tuple[str, ...]:
        return self._guard.notices if self._guard is not None else ()

    def _make_writers(self, job: Job, limits: list[int]) -> list[AnswerWriter]:
        writers = []
        for request, options, limit in zip(job.requests, job.options, limits, strict=True):
            defaults, end_ids = self._manifest.generation, self._manifest.tokens.eos
            rule = make_sampling_rule(options, defaults, end_ids, limit)
            sampler = self._make_sampler(rule, request.input_ids)
            writers.append(
                make_writer(
                    sampler,
                    self._tokenizer,
                    options,
                    defaults,
                    end_ids,
                    request.input_ids,
                    limit,
                )
            )
        return writers

    def _encode(
        self, requests: Sequence[Request], is_cancelled: Callable[[], bool]
    ) -> list[DecoderPrompt]:
        """Run the ViT over the pictures of all requests and hand them out again."""
        hidden_size = self._manifest.decoder.hidden_size
        visuals = [visual for request in requests for visual in request.visuals]
        embeds = iter(encode_visuals(self._backend, visuals, hidden_size, is_cancelled))
        return [
            make_decoder_prompt(request, [next(embeds) for _ in request.visuals], hidden_size)
            for request in requests
        ]


def _make_answer(
    request: Request,
    writer: AnswerWriter,
    notices: tuple[str, ...],
    timings: Timings,
    providers: tuple[str, ...],
) -> Answer:
    assert writer.finish_reason is not None
    return Answer(
        text=writer.text,
        token_ids=tuple(writer.token_ids),
        finish_reason=writer.finish_reason,
        num_prompt_tokens=len(request.input_ids),
        num_image_tokens=int(request.is_visual.sum()),
        notices=notices,
        timings=timings,
        providers=providers,
    )


def _measure_speed(writer: AnswerWriter, decode_s: float) -> float:
    """Tokens per second; the first token is the prefill's."""
    return (len(writer.token_ids) - 1) / decode_s if len(writer.token_ids) > 1 else 0.0


def _make_check(cancel: Cancel) -> Callable[[], bool]:
    """One question for both forms of cancelling; a yes stays a yes."""
    if cancel is None:
        return lambda: False
    ask = cancel.is_set if isinstance(cancel, threading.Event) else cancel
    if not callable(ask):
        raise ValueError(f"cancel is {cancel!r}, needed an Event or a function without arguments")
    is_cancelled = False

    def check() -> bool:
        nonlocal is_cancelled
        is_cancelled = is_cancelled or bool(ask())
        return is_cancelled

    return check
