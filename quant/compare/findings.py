"""The findings of a check, level by level: the contract between measuring, gate and reports."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from .ratio_interval import estimate_ratio

FLOAT16_LARGEST = 65504.0
# Real pictures and questions differ from those that were tried, and a sum's parts may be larger
# than the sum: what comes within a factor of two of the end is told of
FLOAT16_NEAR = FLOAT16_LARGEST / 2


@dataclass(frozen=True, slots=True)
class SettingFinding:
    """One setting of both sides, as text: JSON, or the hash of a file; see `settings`."""

    name: str  # "tokens.eos"
    reference: str
    got: str

    @property
    def is_equal(self) -> bool:
        """Whether both sides have the same."""
        return self.got == self.reference

    @property
    def is_of_pictures(self) -> bool:
        """Whether it decides into what patches a picture is cut."""
        return self.name.startswith(("pixels.", "vision."))


@dataclass(frozen=True, slots=True)
class EmbeddingFinding:
    """Numbers of one picture or clip against the reference's.

    Attributes:
        level: "pixel_values", "before_merger" or "image_embeds".
        example: id of the example it belongs to.
        bucket: "448x448" in pixels after resizing, "clip 84x84x2".
        sqnr_db: 10 log10(signal power / error power); 200 where both are equal.
        rel_l2: norm of the error / norm of the reference.
    """

    level: str
    example: str
    bucket: str
    cosine: float
    sqnr_db: float
    max_abs: float
    rel_l2: float


@dataclass(frozen=True, slots=True)
class LogitFinding:
    """Teacher-forced logits of one example; a value a position of the answer.

    Attributes:
        kl: KL(reference || bundle) in nats.
        top1: 1 where the best token is equal, else 0.
        top5: share of the five best in common.
        first_divergence: the first position, from 0, whose best token differs; None: none does.
    """

    example: str
    kl: tuple[float, ...]
    top1: tuple[float, ...]
    top5: tuple[float, ...]
    first_divergence: int | None


@dataclass(frozen=True, slots=True)
class TextFinding:
    """Answers of both sides to one example, each by its own settings; scores from 0 to 1.

    Attributes:
        reference_ended, got_ended: whether an end token ended the answer, and not the limit.
    """

    example: str
    task: str
    question: str
    answers: tuple[str, ...]  # accepted ones
    reference: str
    got: str
    common_prefix: int  # tokens
    num_tokens: int  # of the reference
    edit_distance: int  # characters
    reference_score: float | None  # None: unlabelled
    got_score: float | None
    reference_ended: bool = True
    got_ended: bool = True


@dataclass(frozen=True, slots=True)
class TaskFinding:
    """Scores of one task over its examples, in points of 100.

    Attributes:
        low, high: 95 % interval of the paired difference got - reference; see paired_interval.
        lost, won: sums of what single examples lose and win, in scores from 0 to 1.
        squares: sum of the squared differences of single examples.
    """

    task: str
    metric: str
    num_examples: int
    reference: float
    got: float
    low: float
    high: float
    lost: float
    won: float
    squares: float

    @property
    def loss(self) -> float:
        """Points lost against the reference; negative is a gain."""
        return self.reference - self.got

    @property
    def is_noise(self) -> bool:
        """Whether the interval of the difference holds 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class SpeedFinding:
    """Measurements of both sides, run by run; ratios are got / reference, of time or of memory.

    Attributes:
        reference_runs, got_runs: above 0, one a run, each run's two taken one after the other.
    """

    what: str  # "vision", "prefill", "decode", "peak_memory"
    unit: str  # "ms", "ms a token", "MiB"
    reference_runs: tuple[float, ...]
    got_runs: tuple[float, ...]

    @property
    def reference(self) -> float:
        """Median of its runs."""
        return statistics.median(self.reference_runs)

    @property
    def got(self) -> float:
        """Median of its runs."""
        return statistics.median(self.got_runs)

    @property
    def ratio(self) -> float:
        """Geometric mean of the runs' ratios; below 1 is better."""
        return self.interval[1]

    @property
    def interval(self) -> tuple[float, float, float]:
        """Ratio: least, best estimate, most, with 95 %; see ratio_interval."""
        return estimate_ratio(self.got_runs, self.reference_runs)

    @property
    def is_noise(self) -> bool:
        """Whether the interval of the ratio holds 1: no difference was shown."""
        low, _, high = self.interval
        return low <= 1 <= high


@dataclass(frozen=True, slots=True)
class LayerFinding:
    """Error at one layer's output in the walk through both graphs side by side.

    Attributes:
        layer: "visual.blocks.3.mlp.fc1": a linear, as coverage names it.
        bucket: as in EmbeddingFinding; "text" where no picture is.
        own_sqnr_db: of this layer alone, both sides given the reference's input.
        sqnr_db: of the output as it comes, with the error of all layers before it.
        part_sqnr_db: own_sqnr_db of each part of a joined layer, in the order of its name
            (gate_proj+up_proj; of the ViT's qkv: q, k, v); empty if it is not joined.
        worst_channel: the output channel whose own error is farthest from the others' of its
            part: "row 7 of up_proj"; "" if none has an error.
        worst_channel_db: own SQNR of that channel.
        channel_gap_db: how much larger its error is than that of the median channel of its part,
            beyond what rounding explains.
        channel_sigma_db: spread of that part's channels, from the median deviation.
    """

    layer: str
    precision: str
    bucket: str
    own_sqnr_db: float
    sqnr_db: float
    part_sqnr_db: tuple[float, ...] = ()
    worst_channel: str = ""
    worst_channel_db: float = 200.0
    channel_gap_db: float = 0.0
    channel_sigma_db: float = 0.0


@dataclass(frozen=True, slots=True)
class RangeFinding:
    """The largest value of a float16 tensor: of one that comes near the end, and of the largest.

    Attributes:
        graph: of the bundle.
        layer: that makes it.
        tensor: its name in the graph.
        largest: absolute value, over all that was run; infinity or NaN where it is none.
        example: that has it.
    """

    graph: str
    layer: str
    tensor: str
    largest: float
    example: str

    @property
    def overflows(self) -> bool:
        """Whether a device that computes in float16 makes infinity of it."""
        return not self.largest <= FLOAT16_LARGEST  # NaN is what becomes of infinity

    @property
    def is_near(self) -> bool:
        """Whether it holds, but other pictures may well go over the end."""
        return FLOAT16_NEAR < self.largest <= FLOAT16_LARGEST


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Everything one check measured. Empty tuples: that level was not asked for.

    Attributes:
        bundle, reference: names, never absolute paths.
        skipped: example id -> why it was left out.
        settings: of every check, whatever else it measured.
        layers: in the order of the walk.
        ranges: of a bundle that computes in float16, whatever was asked for, in the order they
            run; the largest value of all is always among them.
        environment: versions, machine, execution provider; shown as they are.
    """

    bundle: str
    reference: str
    data: str
    data_sha256: str
    num_examples: int
    skipped: dict[str, str]
    settings: tuple[SettingFinding, ...] = ()
    embeddings: tuple[EmbeddingFinding, ...] = ()
    logits: tuple[LogitFinding, ...] = ()
    texts: tuple[TextFinding, ...] = ()
    tasks: tuple[TaskFinding, ...] = ()
    speed: tuple[SpeedFinding, ...] = ()
    layers: tuple[LayerFinding, ...] = ()
    ranges: tuple[RangeFinding, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
