"""The reader that manifests and recipes share: what fits is read, what doesn't is named."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.files.strict import read_strict


@dataclass(frozen=True, slots=True)
class Round:
    shape: Literal["round"]
    radius: float


@dataclass(frozen=True, slots=True)
class Square:
    shape: Literal["square"]
    side: int = 1

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side is {self.side}, needed at least 1")


@dataclass(frozen=True, slots=True)
class Drawing:
    name: str
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    tags: list[str] = field(default_factory=list)
    part: Round | Square | None = None
    only: Round | None = None
    width: int | Literal["auto"] = "auto"
    label: str | Square = ""
    shares: dict[str, float] = field(default_factory=dict)
    level: Literal[0, 1, True] = 0
    is_filled: bool = False


FULL: dict[str, Any] = {
    "name": "x",
    "sizes": [1, 2],
    "pair": [3, "b"],
    "tags": ["a"],
    "part": {"shape": "round", "radius": 2},
    "only": {"shape": "round", "radius": 0.5},
    "width": 7,
    "label": {"shape": "square"},
    "shares": {"a": 1, "b": 0.25},
    "level": 1,
    "is_filled": True,
}


def test_every_kind_of_field_is_read():
    assert read_strict(FULL, Drawing, "drawing") == Drawing(
        name="x",
        sizes=(1, 2),
        pair=(3, "b"),
        tags=["a"],
        part=Round("round", 2.0),
        only=Round("round", 0.5),
        width=7,
        label=Square("square"),
        shares={"a": 1.0, "b": 0.25},
        level=1,
        is_filled=True,
    )


def test_numbers_that_may_be_fractions_are_floats():
    read = read_strict({"shape": "round", "radius": 2}, Round, "r")
    assert type(read.radius) is float


def test_fields_with_a_default_may_be_missing_and_the_others_not():
    assert read_strict({"name": "x"}, Drawing, "drawing") == Drawing("x")
    with pytest.raises(ValueError, match=r"^drawing lacks: name$"):
        read_strict({}, Drawing, "drawing")


def test_dataclasses_of_a_union_are_told_apart_by_their_word():
    value = {"name": "x", "part": {"shape": "square", "side": 3}}
    assert read_strict(value, Drawing, "drawing").part == Square("square", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1, "depth": 2}, r"drawing has unknown keys: colour, depth; it may have name, "),
        ({"sizes": 3}, r"drawing\.sizes is 3, needed a list"),
        ({"sizes": [1, "2"]}, r"drawing\.sizes\[1\] is '2', needed int"),
        ({"sizes": [True]}, r"drawing\.sizes\[0\] is True, needed int"),
        ({"sizes": [1.0]}, r"drawing\.sizes\[0\] is 1\.0, needed int"),
        ({"pair": [1]}, r"drawing\.pair has 1 items, needed 2"),
        ({"tags": [None]}, r"drawing\.tags\[0\] is None, needed str"),
        ({"part": {"shape": "round"}}, r"drawing\.part lacks: radius"),
        ({"part": {"shape": "oval"}}, r"drawing\.part is an object, needed Round or Square or not"),
        ({"part": {}}, r"drawing\.part is an object"),
        ({"part": []}, r"drawing\.part is a list"),
        ({"part": {"shape": "square", "side": 0}}, r"drawing\.part: side is 0, needed at least 1"),
        (
            {"only": {"shape": "round", "radius": "1"}},
            r"drawing\.only\.radius is '1', needed float",
        ),
        ({"only": {"shape": "round", "radius": True}}, r"only\.radius is True, needed float"),
        ({"width": "wide"}, r"drawing\.width is 'wide', needed int or 'auto'"),
        ({"width": None}, r"drawing\.width is None"),
        ({"label": {"shape": "square", "sid": 1}}, r"drawing\.label has unknown keys: sid"),
        ({"shares": {"a": float("nan")}}, r"drawing\.shares\.a is nan, needed a finite number"),
        ({"shares": {"a": float("-inf")}}, r"needed a finite number"),
        ({"shares": {"a": 10**400}}, r"needed a finite number"),
        ({"shares": [1]}, r"drawing\.shares is a list, needed an object"),
        ({"level": 2}, r"drawing\.level is 2, needed one of 0, 1, True"),
        ({"level": 1.0}, r"drawing\.level is 1\.0"),
        ({"level": False}, r"drawing\.level is False"),
        ({"is_filled": 1}, r"drawing\.is_filled is 1, needed bool"),
        ({"name": "a" * 5000, "sizes": "b" * 5000}, r"'b{70,80}\.\.\., needed a list$"),
    ],
)
@pytest.mark.parametrize("error", [ValueError, BundleError])
def test_what_does_not_fit_is_named_with_its_place(change, message, error):
    with pytest.raises(error, match=message) as raised:
        read_strict(FULL | change, Drawing, "drawing", error)
    assert type(raised.value) is error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FULL, "shape", "radius", "side"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(FULL)), value=VALUES)
def test_any_value_is_read_as_the_type_says_or_refused(name, value):
    try:
        drawing = read_strict(FULL | {name: value}, Drawing, "drawing")
    except ValueError:
        return
    # read: then it is the same thing when it is written and read again
    written = json.loads(json.dumps(dataclasses.asdict(drawing)))
    assert read_strict(written, Drawing, "drawing") == drawing
