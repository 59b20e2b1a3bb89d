import dataclasses

import pytest

from vlmedge.quant.check.plan import LEVELS, CheckPlan, check_decidable, check_gate, choose_levels
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.gate import parse_gate

QUESTION = ({"role": "user", "content": "Who?"},)
DATA = DataSet("three.jsonl", "", (Example("a", QUESTION, ("b",)), Example("c", QUESTION)), {})


def test_levels_are_all_that_can_be_compared():
    unlabelled = dataclasses.replace(DATA, examples=DATA.examples[1:])
    both = choose_levels(CheckPlan(), DATA, with_bundle=True)
    assert both == LEVELS
    assert set(LEVELS) - set(choose_levels(CheckPlan(), DATA, with_bundle=False)) == {"speed"}
    assert set(LEVELS) - set(choose_levels(CheckPlan(), unlabelled, with_bundle=True)) == {"tasks"}
    with pytest.raises(ValueError, match="level speed can't be compared: it needs a float bundle"):
        choose_levels(CheckPlan(("speed",)), DATA, with_bundle=False)
    with pytest.raises(ValueError, match=r"no example of three\.jsonl has an answer"):
        choose_levels(CheckPlan(("texts", "tasks")), unlabelled, with_bundle=True)
    # the order of LEVELS, whatever it was asked for in
    assert choose_levels(CheckPlan(("texts", "logits")), DATA, with_bundle=True) == (
        "settings",
        "logits",
        "texts",
    )


def test_a_gate_on_what_is_not_measured_is_refused_before_the_work():
    gate = parse_gate(
        "text.exact_match_min = 1\nbefore_merger.cosine_min = 0\nspeed.vision_max = 1"
    )
    check_gate(gate, LEVELS)
    check_gate(gate, ("texts", "embeddings", "speed"))
    with pytest.raises(ValueError, match=r"gate\.toml limits before_merger, speed, which is not"):
        check_gate(gate, ("texts", "tasks"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": ("embedings",)}, "level is 'embedings', needed one of settings, embeddings"),
        ({"levels": ()}, "no levels"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_speed_runs": 0}, "num_speed_runs is 0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CheckPlan(**fields)


def test_data_that_can_decide_nothing_is_refused_before_a_search():
    gate = parse_gate("[tasks]\nworst_loss_max = 5\nnon_inferior = true")
    few = DataSet("few.jsonl", "0" * 64, tuple(labelled(i) for i in range(20)), {})
    with pytest.raises(
        ValueError, match=r"worst_loss_max can't be decided with few\.jsonl: t: it takes about 73"
    ):
        check_decidable(gate, few)
    many = DataSet("many.jsonl", "0" * 64, tuple(labelled(i) for i in range(73)), {})
    check_decidable(gate, many)
    check_decidable(parse_gate("[text]\nexact_match_min = 1"), few)


def labelled(index):
    return Example(f"t/{index}", ({"role": "user", "content": "?"},), ("a",), "t")
