import dataclasses

import numpy as np
import pytest

from vlmedge.quant.check.levels import (
    check_finite,
    compare_forced,
    compare_texts,
    compare_visuals,
    find_question,
    score_tasks,
)
from vlmedge.quant.compare.reference import NotFiniteError, Observation, Visual
from vlmedge.quant.data.examples import Example

QUESTION = ({"role": "user", "content": "Who?"},)


def make_visual(value, bucket="28x28"):
    return Visual(
        bucket,
        np.ones((4, 1176), np.float32),
        np.full((4, 8), value, np.float32),
        np.full((1, 16), 2 * value, np.float32),
    )


def make_seen(*visuals, token_ids=(1, 2), text="ab", logits=((0, 1), (1, 0))):
    return Observation(visuals, token_ids, text, np.array(logits, np.float32), True)


def test_every_picture_is_compared_at_three_places():
    example = Example("a", QUESTION)
    got = make_seen(make_visual(1.1), make_visual(1.0, "56x28"))
    needed = make_seen(make_visual(1.0), make_visual(1.0, "56x28"))
    found = compare_visuals(example, got, needed)
    places = ("pixel_values", "before_merger", "image_embeds")
    assert [(f.level, f.bucket, f.example) for f in found] == [
        (level, bucket, "a") for bucket in ("28x28", "56x28") for level in places
    ]
    assert [f.rel_l2 for f in found] == pytest.approx([0, 0.1, 0.1, 0, 0, 0], abs=1e-6)
    assert [f.max_abs for f in found] == pytest.approx([0, 0.1, 0.2, 0, 0, 0], abs=1e-6)
    assert found[0].sqnr_db == 200
    assert found[1].sqnr_db == pytest.approx(20, abs=1e-4)


def test_other_picture_sizes_are_an_error_unless_the_budgets_differ():
    same = make_visual(1.0)
    got, needed = make_seen(make_visual(1.0), same), make_seen(make_visual(1.0, "56x56"), same)
    with pytest.raises(ValueError, match=r"example a: .*28x28.*56x56.*budgets are the same"):
        compare_visuals(Example("a", QUESTION), got, needed)
    found = compare_visuals(Example("a", QUESTION), got, needed, is_budget_equal=False)
    assert [f.bucket for f in found] == ["28x28"] * 3  # the one that can be compared


def test_logits_are_compared_position_by_position():
    got = make_seen(logits=((0, 1), (0, 0), (0, 1)))
    needed = make_seen(logits=((0, 1), (0, np.log(3)), (0, 1)))
    found = compare_forced(Example("a", QUESTION), got, needed)
    assert found.top1 == (1, 0, 1)
    assert found.first_divergence == 1
    # The reference says 1/4 and 3/4, the bundle 1/2 and 1/2
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert found.kl == pytest.approx((0, kl, 0), abs=1e-7)


def test_texts_hold_both_answers_and_both_scores():
    example = Example("a", QUESTION, ("ab", "abc"), "letters")
    got = make_seen(token_ids=(1, 3), text="ax")
    found = compare_texts(example, got, make_seen(token_ids=(1, 2, 9), text="ab"))
    assert dataclasses.asdict(found) == {
        "example": "a",
        "task": "letters",
        "question": "Who?",
        "answers": ("ab", "abc"),
        "reference": "ab",
        "got": "ax",
        "common_prefix": 1,
        "num_tokens": 3,
        "edit_distance": 1,
        "reference_score": 1.0,
        "got_score": 0.0,
        "reference_ended": True,
        "got_ended": True,
    }
    unlabelled = compare_texts(Example("a", QUESTION), got, got)
    assert (unlabelled.reference_score, unlabelled.got_score) == (None, None)
    assert unlabelled.task == "all"


def test_tasks_are_scored_over_their_labelled_examples_only():
    def text(example, got):
        return compare_texts(example, make_seen(text=got), make_seen(text="ab"))

    examples = [
        Example("1", QUESTION, ("ab",), "letters"),
        Example("2", QUESTION, ("ab",), "letters"),
        Example("3", QUESTION, (), "letters"),
        Example("4", QUESTION, ("ab",), "letters", "ocrbench"),
        Example("5", QUESTION, ("cd",)),
    ]
    got = ["ab", "no", "no", "xaby", "cd"]
    found = score_tasks(examples, [text(e, g) for e, g in zip(examples, got, strict=True)])
    assert [(f.task, f.metric, f.num_examples, f.reference, f.got) for f in found] == [
        ("letters", "exact_match", 2, 100, 50),
        ("letters", "ocrbench", 1, 100, 100),
        ("all", "exact_match", 1, 0, 100),
    ]
    assert score_tasks(examples[2:3], [text(examples[2], "ab")]) == ()


@pytest.mark.parametrize("level", ["pixel_values", "before_merger", "image_embeds", "logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_found(level, value):
    seen = make_seen(make_visual(1.0), make_visual(1.0))
    check_finite(seen)
    array = seen.logits if level == "logits" else getattr(seen.visuals[1], level)
    array[-1, -1] = value
    with pytest.raises(NotFiniteError, match=level):
        check_finite(seen)


def test_the_question_is_the_last_user_turns_text():
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image", "image": "a.png"},
                {"type": "text", "text": "what?"},
            ],
        },
    )
    assert find_question(Example("a", messages)) == "Look: what?"
    assert find_question(Example("a", messages[:1])) == ""
