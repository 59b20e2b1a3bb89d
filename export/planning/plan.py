"""The frozen objects between the planner's parts: what is asked, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.decode.generate import PREFILL_TOKENS
from .memory import MemoryPart, sum_lines
from .placement import Setup
from .tokens import PromptPlan


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the model.

    Attributes:
        width, height: of a picture, in pixels.
        num_images: pictures of that size.
        video_s: seconds of a clip; 0: none.
        video_width, video_height: of its frames; None: as a picture's.
        num_text_tokens: of the question.
        num_new_tokens: of the longest answer.
        context: tokens of the cache; None: as many as the request takes.
        max_pixels: of a picture; None: the model's own limit.
        batch: sequences together, all alike.
        prefill_tokens: of one call.
        split: consecutive engines of the decoder.
        separate_lm_head: the last matrix as an engine of its own.
    """

    width: int = 1280
    height: int = 720
    num_images: int = 1
    video_s: float = 0.0
    video_width: int | None = None
    video_height: int | None = None
    num_text_tokens: int = 64
    num_new_tokens: int = 256
    context: int | None = None
    max_pixels: int | None = None
    batch: int = 1
    prefill_tokens: int = PREFILL_TOKENS
    split: int = 1
    separate_lm_head: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "prefill_tokens", "split"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed 1 or more")
        if self.num_images < 0 or not 0 <= self.video_s < 1e9:
            raise ValueError(
                f"{self.num_images} pictures and a clip of {self.video_s:g} s, needed 0 or more"
            )


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory that something takes, against what there is."""

    parts: tuple[MemoryPart, ...]
    free_bytes: int

    @property
    def nbytes(self) -> int:
        """In all."""
        return sum_lines(self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.nbytes <= self.free_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """One phase: operations, bytes moved, and an estimate where the device is known."""

    name: str
    flops: int
    nbytes: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a plan says.

    Attributes:
        run, build: memory; build is None where nothing is built.
        run_with_scores: what running takes if the ViT's attention scores are kept in memory.
        run_one_graph: what it takes if only the graph in use is loaded.
        costs: "ViT", "prefill", "decode" (of one token).
        problems: why it does not fit; none: it does.
        notes: what should be known besides.
    """

    setup: Setup
    request: Request
    prompt: PromptPlan
    run: Budget
    run_with_scores: int
    run_one_graph: int
    build: Budget | None
    costs: tuple[Cost, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether everything does."""
        return not self.problems

    @property
    def first_token_s(self) -> float | None:
        """ViT and prefill; preparing the pictures on the host comes on top."""
        seconds = [cost.seconds for cost in self.costs[:2]]
        return None if None in seconds else sum(s for s in seconds if s is not None)

    @property
    def tokens_per_s(self) -> float | None:
        """Of the whole batch."""
        seconds = self.costs[2].seconds
        return self.request.batch / seconds if seconds else None
