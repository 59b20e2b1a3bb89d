"""Read a benchmark's Parquet files as examples; pictures stay encoded bytes.

Texts are read of all rows, pictures only of those that are asked for, a few at a time. Needs
pyarrow (extra "data").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...runtime.files.regular_file import check_regular
from .examples import Example
from .layouts import Layout, Question, Slot
from .listing import Entry, Listing, make_listing
from .task_metrics import METRICS

BATCH_ROWS = 16  # read at a time: pictures of scans can have megabytes each


class _Place(NamedTuple):
    """Where a row is."""

    path: Path
    row: int


def read_parquet(layout_name: str, layout: Layout, paths: Sequence[Path]) -> Listing:
    """List the rows of files of one layout, in the order given.

    Raises:
        ValueError: pyarrow is missing, a file is damaged or has other columns, or a
            row has wrong types.
    """
    entries, questions, places = [], [], []
    for path in paths:
        for row, values in _read_texts(path, layout):
            where = f"{path} row {row}"
            try:
                question = layout.read(values)
                _check(question)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            name = question.id if question.id is not None else str(len(entries))
            entries.append(Entry(name, layout_name, where))
            questions.append(question)
            places.append(_Place(path, row))

    def load(indices: Sequence[int]) -> list[Example]:
        pictures = _read_pictures([places[i] for i in indices], layout.pictures)
        return [
            _make_example(entries[i], questions[i], row)
            for i, row in zip(indices, pictures, strict=True)
        ]

    return make_listing(f"{layout_name}:{paths[0].name}", entries, load)


def _check(question: Question) -> None:
    needed = METRICS[question.metric].min_answers
    if question.answers and len(question.answers) < needed:
        raise ValueError(
            f"it has {len(question.answers)} answers, {question.metric} needs {needed}"
        )
    for text in (*question.content, *question.answers):
        if isinstance(text, str):
            text.encode()


def _make_example(entry: Entry, question: Question, row: dict[str, Any]) -> Example:
    content = [
        {"type": "image", "image": row.get(piece.column)}
        if isinstance(piece, Slot)
        else {"type": "text", "text": piece}
        for piece in question.content
    ]
    return Example(
        id=entry.id,
        messages=({"role": "user", "content": content},),
        answers=question.answers,
        task=entry.task,
        metric=question.metric,
        choices=question.choices,
    )


def _read_texts(path: Path, layout: Layout) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of the layout's columns without pictures."""
    with _open(path) as file:
        present = set(file.schema_arrow.names)
        columns = next((c for c in layout.columns if present.issuperset(c)), None)
        if columns is None or not present.intersection(layout.pictures):
            needed = " or ".join(", ".join((*c, layout.pictures[0])) for c in layout.columns)
            raise ValueError(
                f"{path} has the columns {', '.join(sorted(present))}; needed {needed}"
            )
        yield from _read_rows(file, path, columns)


def _read_pictures(places: Sequence[_Place], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each place its pictures by column: bytes, a path, or None."""
    found: dict[_Place, dict[str, Any]] = {}
    known: dict[bytes, bytes] = {}  # one copy of a picture that several questions are about
    for path in dict.fromkeys(place.path for place in places):
        wanted = {place.row for place in places if place.path == path}
        with _open(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for row, values in _read_rows(file, path, present, wanted):
                found[_Place(path, row)] = {
                    name: _read_struct(value, path, row, name, known)
                    for name, value in values.items()
                }
    return [found[place] for place in places]


def _read_rows(
    file: Any, path: Path, columns: Sequence[str], wanted: set[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, values) of all rows, or of the wanted ones; groups without any are not read."""
    from pyarrow import ArrowException

    start = 0
    try:
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if wanted is None or not wanted.isdisjoint(range(start, end)):
                row = start
                for batch in file.iter_batches(BATCH_ROWS, [group], list(columns)):
                    for i in range(batch.num_rows):
                        if wanted is None or row + i in wanted:
                            yield row + i, {name: batch[name][i].as_py() for name in columns}
                    row += batch.num_rows
            start = end
    except (OSError, ArrowException) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _read_struct(
    value: Any, path: Path, row: int, column: str, known: dict[bytes, bytes]
) -> bytes | str | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not {"bytes", "path"} & value.keys():
        raise ValueError(
            f"{path} row {row}: {column} is a {type(value).__name__}, "
            "needed a struct of bytes and path"
        )
    if value.get("bytes"):
        return known.setdefault(value["bytes"], value["bytes"])
    return str(path.resolve().parent / value["path"]) if value.get("path") else None


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs pyarrow: pip install 'vlmedge[data]' ({error})"
        ) from error
    try:
        check_regular(path)
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise ValueError(f"{path} is no readable parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
