"""Compare one example as both sides saw it, level by level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...runtime.inputs.messages import TextPart, read_messages
from ..compare.findings import EmbeddingFinding, LogitFinding, TaskFinding, TextFinding
from ..compare.measures import (
    compare_arrays,
    compare_logits,
    count_common_prefix,
    measure_edit_distance,
)
from ..compare.reference import ARRAYS, NotFiniteError, Observation
from ..data.examples import NO_TASK, Example
from ..data.task_metrics import score
from ..gate.statistics import score_task


def check_finite(seen: Observation) -> None:
    """Refuse NaN and infinity, which no measure has a meaning for.

    Raises:
        NotFiniteError: names the level.
    """
    arrays = [(name, getattr(visual, name)) for visual in seen.visuals for name in ARRAYS]
    for level, array in [*arrays, ("logits", seen.logits)]:
        if not np.isfinite(array).all():
            raise NotFiniteError(f"{level} hold NaN or infinity")


def compare_visuals(
    example: Example, got: Observation, needed: Observation, *, is_budget_equal: bool = True
) -> list[EmbeddingFinding]:
    """Every picture and clip on its way through the ViT.

    Args:
        example: that both saw.
        got: of the bundle.
        needed: of the reference.
        is_budget_equal: the two sides' settings of pictures are the same; where they are not,
            pictures of other sizes are left out, and the settings say why.

    Raises:
        ValueError: the two sides resize pictures differently, by the same settings.
    """
    findings = []
    for ours, theirs in zip(got.visuals, needed.visuals, strict=True):
        if ours.bucket != theirs.bucket:
            if not is_budget_equal:
                continue
            raise ValueError(
                f"example {example.id}: a picture is {ours.bucket} pixels for the bundle, "
                f"{theirs.bucket} for the reference, though their pixel budgets are the same"
            )
        for level in ARRAYS:
            distance = compare_arrays(getattr(ours, level), getattr(theirs, level))
            findings.append(
                EmbeddingFinding(
                    level=level,
                    example=example.id,
                    bucket=ours.bucket,
                    cosine=distance.cosine,
                    sqnr_db=distance.sqnr_db,
                    max_abs=distance.max_abs,
                    rel_l2=distance.rel_l2,
                )
            )
    return findings


def compare_forced(example: Example, got: Observation, needed: Observation) -> LogitFinding:
    """Logits along the reference's answer, which the bundle was made to give."""
    distance = compare_logits(got.logits, needed.logits)
    return LogitFinding(
        example=example.id,
        kl=tuple(distance.kl.tolist()),
        top1=tuple(distance.top1.tolist()),
        top5=tuple(distance.top5.tolist()),
        first_divergence=distance.first_divergence,
    )


def compare_texts(example: Example, got: Observation, needed: Observation) -> TextFinding:
    """The answers that each side gives when left to itself."""
    return TextFinding(
        example=example.id,
        task=example.task or NO_TASK,
        question=find_question(example),
        answers=example.answers,
        reference=needed.text,
        got=got.text,
        common_prefix=count_common_prefix(got.token_ids, needed.token_ids),
        num_tokens=len(needed.token_ids),
        edit_distance=measure_edit_distance(got.text, needed.text),
        reference_score=score(needed.text, example),
        got_score=score(got.text, example),
        reference_ended=needed.ended,
        got_ended=got.ended,
    )


def score_tasks(
    examples: Sequence[Example], texts: Sequence[TextFinding]
) -> tuple[TaskFinding, ...]:
    """Scores over the labelled examples, a finding a task and metric, in the data's order."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for example, text in zip(examples, texts, strict=True):
        if text.reference_score is not None and text.got_score is not None:
            key = (text.task, example.metric)
            groups.setdefault(key, []).append((text.reference_score, text.got_score))
    return tuple(
        score_task(task, metric, [a for a, _ in scores], [b for _, b in scores])
        for (task, metric), scores in groups.items()
    )


def find_question(example: Example) -> str:
    """The text of the last user turn."""
    turns = [turn for turn in read_messages(example.messages) if turn.role == "user"]
    parts = turns[-1].parts if turns else ()
    return " ".join(part.text for part in parts if isinstance(part, TextPart))
