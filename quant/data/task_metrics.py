"""Score a prediction against the accepted answers from 0 to 1, as each benchmark defines it.

All are scores: more is better. `cer` and `wer`, too: 1 minus the error rate, 0 from a rate of 1 on.
Where a benchmark asks a language model for its judgement (MathVista, MMBench), its rules without
one are used; `source` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import jiwer
from rapidfuzz.distance import Levenshtein

from .choices import find_choice, find_open_answers, normalize_open
from .examples import Example
from .vqa_words import normalize_textvqa, normalize_words

# Below it an answer counts as another one, not as badly read. The paper drops 0.5 itself, too; the
# scripts in use (Qwen-VL's, lmms-eval, VLMEvalKit) keep it.
ANLS_THRESHOLD = 0.5
RELAXED_CHANGE = 0.05
VQA_AGREEMENT = 3  # people who gave an answer for it to count fully
NUMBER = re.compile(
    r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score an answer.

    Attributes:
        source: the paper or code that defines it.
        function: (prediction, accepted answers, example) -> 0 (wrong) to 1 (right); there is at
            least one answer.
        min_answers: that an example must have for the score to mean anything.
    """

    name: str
    source: str
    function: Callable[[str, tuple[str, ...], Example], float]
    min_answers: int = 1


def score(prediction: str, example: Example) -> float | None:
    """A prediction by its example's own metric, 0 to 1; None where no answer is known."""
    if not example.answers:
        return None
    return METRICS[example.metric].function(prediction, example.answers, example)


def _anls(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    said = " ".join(prediction.lower().split())
    best = max(
        Levenshtein.normalized_similarity(said, " ".join(answer.lower().split()))
        for answer in answers
    )
    return best if best >= ANLS_THRESHOLD else 0.0


def _relaxed_accuracy(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return float(any(_is_close(prediction.strip(), answer) for answer in answers))


def _is_close(prediction: str, answer: str) -> bool:
    said, wanted = _to_number(prediction), _to_number(answer)
    if said is not None and wanted:  # of 0 there are no five percent: compared as text
        return abs(said - wanted) / abs(wanted) <= RELAXED_CHANGE
    return prediction.lower() == answer.lower()


def _to_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _vqa_accuracy(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    plain = [re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers)]
    if len(set(plain[1:])) > 1:  # all the same: compared as they stand, says the original
        plain = [normalize_words(text) for text in plain]
    return _agree(plain[0], plain[1:])


def _textvqa_accuracy(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return _agree(normalize_textvqa(prediction), [normalize_textvqa(text) for text in answers])


def _agree(said: str, people: list[str]) -> float:
    """Mean over the sets with one person left out of min(1, number that agree / 3)."""
    num_agreeing = people.count(said)
    left_out = [min(1.0, (num_agreeing - (one == said)) / VQA_AGREEMENT) for one in people]
    return sum(left_out) / len(left_out)


def _ocrbench(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    said, *wanted = (text.lower().strip().replace("\n", " ") for text in (prediction, *answers))
    return float(any(answer in said for answer in wanted))


def _ocrbench_formula(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    said, *wanted = (
        text.strip().replace("\n", " ").replace(" ", "") for text in (prediction, *answers)
    )
    return float(any(answer in said for answer in wanted))


def _exact_match(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return float(prediction.strip() in answers)


def _word_match(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    said, *wanted = (text.lower().strip().rstrip(".") for text in (prediction, *answers))
    return float(said in wanted)


def _multiple_choice(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return float(find_choice(prediction, example.choices) in answers)


def _mmmu_open(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    wanted = [form for answer in answers for form in normalize_open(answer)]
    phrases = [form for form in wanted if isinstance(form, str)]
    return float(
        any(
            any(phrase in said for phrase in phrases) if isinstance(said, str) else said in wanted
            for said in find_open_answers(prediction)
        )
    )


def _mathvista_number(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    """The last number said, at the precision of the answer: cut to an integer, or rounded."""
    numbers = [float(found.replace(",", "")) for found in NUMBER.findall(prediction)]
    if not numbers or not math.isfinite(said := numbers[-1]):
        return 0.0
    for answer in answers:
        wanted, decimals = _to_number(answer), len(answer.strip().partition(".")[2])
        if wanted == (round(said, decimals) if decimals else int(said)):
            return 1.0
    return 0.0


def _cer(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return max(0.0, 1.0 - min(jiwer.cer(answer, prediction) for answer in answers))


def _wer(prediction: str, answers: tuple[str, ...], example: Example) -> float:
    return max(0.0, 1.0 - min(jiwer.wer(answer, prediction) for answer in answers))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "the whole answer is an accepted one, to the letter", _exact_match),
        Metric("word_match", "RealWorldQA in lmms-eval: case, final period ignored", _word_match),
        Metric("anls", "DocVQA (arXiv 2007.00398, 4.1); 0.5 counts, as in lmms-eval", _anls),
        Metric(
            "relaxed_accuracy",
            "ChartQA (arXiv 2203.10244, 5.1), percents as in pix2struct",
            _relaxed_accuracy,
        ),
        Metric("vqa_accuracy", "VQA challenge, vqaEval.py", _vqa_accuracy, VQA_AGREEMENT + 1),
        Metric(
            "textvqa_accuracy",
            "TextVQA (arXiv 1904.08920), answers normalized as on EvalAI",
            _textvqa_accuracy,
            VQA_AGREEMENT + 1,
        ),
        Metric("ocrbench", "OCRBench (arXiv 2305.07895), example.py", _ocrbench),
        Metric(
            "ocrbench_formula",
            "OCRBench's rule for HME100k: case counts, spaces don't",
            _ocrbench_formula,
        ),
        Metric(
            "multiple_choice",
            "MMMU (arXiv 2311.16502), eval_utils.py, without its random guess",
            _multiple_choice,
        ),
        Metric("mmmu_open", "MMMU, eval_utils.py, questions without options", _mmmu_open),
        Metric(
            "mathvista_number",
            "MathVista (arXiv 2310.02255), the last number instead of a language model's pick",
            _mathvista_number,
        ),
        Metric("cer", "1 - character error rate (jiwer)", _cer),
        Metric("wer", "1 - word error rate (jiwer)", _wer),
    )
}
