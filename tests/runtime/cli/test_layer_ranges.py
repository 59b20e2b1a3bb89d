import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.runtime.cli.layer_ranges import fold_layers


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([f"past_key_values.{i}.key" for i in range(28)], ["past_key_values.{0..27}.key"]),
        ([f"l.{i}.x" for i in (0, 1, 3, 5, 6)], ["l.{0..1,3,5..6}.x"]),
        (["l.10.x", "l.9.x"], ["l.{9..10}.x"]),
        (["l.7.x", "l.7.y", "l.8.y"], ["l.7.x", "l.{7..8}.y"]),
        (["merger.mlp.0", "merger.mlp.2"], ["merger.mlp.{0,2}"]),
        (["0.mlp.1", "1.mlp.1", "0.mlp.2"], ["{0..1}.mlp.1", "0.mlp.2"]),
        (["lm_head", "logits"], ["lm_head", "logits"]),
        ([], []),
    ],
)
def test_equal_layers_become_one_name(names, folded):
    assert fold_layers((name, None) for name in names) == [(name, None) for name in folded]


def test_what_differs_keeps_a_row_of_its_own_in_order():
    named = [("l.0.x", "int8"), ("l.1.x", "fp32"), ("l.2.x", "int8"), ("head", "fp32")]
    assert fold_layers(named) == [("l.{0,2}.x", "int8"), ("l.1.x", "fp32"), ("head", "fp32")]


@given(st.sets(st.integers(0, 40), min_size=1))
def test_a_range_holds_its_numbers_and_no_other(numbers):
    ((name, _),) = fold_layers((f"l.{number}.x", None) for number in numbers)
    text = name.removeprefix("l.").removesuffix(".x").strip("{}")
    found = set()
    for run in text.split(","):
        first, _, last = run.partition("..")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers
    assert ("{" in name) == (len(numbers) > 1)
