"""Show answers that differ as cards with their pictures, the lost ones first."""

from __future__ import annotations

import base64
import difflib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from PIL import Image

from ..compare.findings import TextFinding
from ..files.grammar import agree, counted, everything, part_of
from .page import Answer, Card, Cards, Cell, Part, Section, State, Table

# Example id -> its pictures, or the frames of its clip
Pictures = Callable[[str], Sequence[Image.Image]]

MAX_CARDS = 40
MAX_ROWS = 500
MAX_PICTURES = 4  # of one example
MAX_SIDE = 360  # pixels
MAX_BYTES = 1_500_000  # of all pictures, as base64
JPEG_QUALITY = 80
MAX_WORDS = 400  # of an answer that is compared word by word: the time grows with the square
_WORDS = re.compile(r"\s+|\w+|.", re.DOTALL)


def example_sections(texts: Sequence[TextFinding], pictures: Pictures | None) -> list[Section]:
    """The section of answers that differ; none where no text was compared."""
    if not texts:
        return []
    differing = _order([text for text in texts if text.got != text.reference])
    title = "Answers that differ"
    if not differing:
        told = f"{everything(len(texts), 'answer')} {agree(len(texts), 'is', 'are')} equal."
        return [Section("examples", title, (told + _tell_unended(texts),))]
    shown = differing[:MAX_CARDS]
    cards, left = [], MAX_BYTES
    for text in shown:
        uris, note = _find_pictures(text.example, pictures, left)
        left -= sum(map(len, uris))
        cards.append(_make_card(text, uris, note))
    told = part_of(len(differing), len(texts), "answer", "differs", "differ")
    intro = f"{told}, the lost ones first." if len(differing) > 1 else f"{told}."
    intro += _tell_unended(texts)
    if len(differing) > len(shown):
        intro += f" The first {len(shown)} with their pictures, the others in a table below."
    items: list[Cards | Table] = [Cards(tuple(cards))]
    if rest := differing[MAX_CARDS : MAX_CARDS + MAX_ROWS]:
        missing = len(differing) - len(shown) - len(rest)
        more = f" (report.json has {missing} more)" if missing else ""
        items.append(_make_table(rest, f"{counted(len(rest), 'further answer')}{more}"))
    return [Section("examples", title, (intro,), tuple(items))]


def _tell_unended(texts: Sequence[TextFinding]) -> str:
    """How many answers were cut off at their longest length; "" where none was."""
    unended = sum(not text.got_ended for text in texts)
    needed = sum(not text.reference_ended for text in texts)
    if not unended and not needed:
        return ""
    return (
        f" {unended} of {counted(len(texts), 'answer')} of this bundle did not end by "
        f"{agree(unended, 'itself', 'themselves')}, "
        f"{needed} of the reference's."
    )


def encode_picture(image: Image.Image) -> str:
    """A picture as a data URI, shrunk to MAX_SIDE; PNG where that is smaller (drawings are)."""
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = {}
    for kind, options in (("jpeg", {"quality": JPEG_QUALITY, "optimize": True}), ("png", {})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        encoded[kind] = file.getvalue()
    kind = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


def mark_differences(reference: str, got: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Both answers in pieces, word by word; long ones are marked from the first difference on."""
    words = [_WORDS.findall(text) for text in (reference, got)]
    if max(map(len, words)) > MAX_WORDS:
        pairs = enumerate(zip(reference, got, strict=False))
        equal = next((i for i, (a, b) in pairs if a != b), min(len(reference), len(got)))
        sides = [[Part(text[:equal], False), Part(text[equal:], True)] for text in (reference, got)]
    else:
        sides = [[], []]
        matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
        for tag, *spans in matcher.get_opcodes():
            for side, own, start, stop in zip(sides, words, spans[::2], spans[1::2], strict=True):
                side.append(Part("".join(own[start:stop]), tag != "equal"))
    first, second = (tuple(part for part in side if part.text) for side in sides)
    return first, second


def _change(text: TextFinding) -> float:
    """Score won, from -1 to 1; 0 where there is no label."""
    if text.reference_score is None or text.got_score is None:
        return 0.0
    return text.got_score - text.reference_score


def _order(texts: Sequence[TextFinding]) -> list[TextFinding]:
    """Lost answers first, won ones last; of each the tasks by turns, the worst of each first."""
    worst_first = sorted(texts, key=lambda text: (_change(text), -text.edit_distance, text.example))
    seen: Counter[tuple[float, str]] = Counter()
    turns = []
    for text in worst_first:
        change = _change(text)
        group = (math.copysign(1, change) if change else 0, text.task)
        turns.append((group[0], seen[group], text.task))
        seen[group] += 1
    return [text for _, text in sorted(zip(turns, worst_first, strict=True), key=lambda p: p[0])]


def _tag(text: TextFinding) -> tuple[str, State]:
    if text.reference_score is None or text.got_score is None:
        return "unlabelled", "none"
    change = _change(text)
    if change:
        return ("lost", "fail") if change < 0 else ("won", "pass")
    return "same score", "none"


def _score(value: float | None) -> tuple[str, State]:
    if value is None:
        return "", "none"
    return f"score {value:.2g}", "pass" if value >= 1 else "fail" if value <= 0 else "none"


def _make_card(text: TextFinding, uris: tuple[str, ...], note: str) -> Card:
    tag, state = _tag(text)
    reference, got = mark_differences(text.reference, text.got)
    answers = (
        Answer("reference", reference, *_score(text.reference_score)),
        Answer("this bundle", got, *_score(text.got_score)),
    )
    title = text.example if text.example.startswith(text.task) else f"{text.task}: {text.example}"
    return Card(title, tag, state, text.question, text.answers, answers, uris, note)


def _find_pictures(
    example: str, pictures: Pictures | None, left: int
) -> tuple[tuple[str, ...], str]:
    """Data URIs and a note; a picture that is gone must not cost the report of an hour's check."""
    if pictures is None:
        return (), ""
    if left <= 0:
        return (), "No picture: the report would grow too large."
    try:
        images = pictures(example)
        uris = tuple(encode_picture(image) for image in images[:MAX_PICTURES])
    except (OSError, ValueError, KeyError) as error:
        return (), f"No picture: {error}"
    more = len(images) - len(uris)
    return uris, f"and {more} more" if more else ""


def _make_table(texts: Sequence[TextFinding], summary: str) -> Table:
    columns = tuple(map(Cell, ("example", "accepted", "reference", "this bundle", "")))
    rows = []
    for text in texts:
        tag, state = _tag(text)
        style = {"fail": "bad", "pass": "ok", "none": "quiet"}[state]
        accepted = ", ".join(text.answers)
        rows.append(
            (
                Cell(text.example, "name"),
                Cell(accepted),
                Cell(text.reference),
                Cell(text.got),
                Cell(tag, style),
            )
        )
    return Table(columns, tuple(rows), summary)
