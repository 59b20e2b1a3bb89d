"""Gate files: what they say, and what is refused in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.gate.gate import Gate, Limit, parse_gate, read_gate
from vlmedge.quant.gate.metrics import METRICS

WHOLE = """
[speed]
vision_max = 1.05
[pixel_values]
max_abs_max = 0
[image_embeds]
cosine_min = 0.999
[image_embeds."clip 84x84x2"]
cosine_min = 0.99
[image_embeds.448x448]
rel_l2_max = 0.02
[tasks]
loss_max = 0.5
score_min = 80
non_inferior = true
min_examples = 50
[tasks.receipt]
loss_max = 1
min_examples = 9
[tasks.dial]
loss_max = 2
non_inferior = false
[settings]
allow = ["pixels.max_pixels"]
"""


def test_a_gate_is_its_limits_in_the_order_of_the_levels():
    gate = parse_gate(WHOLE, "gate.toml")
    assert gate == Gate(
        "gate.toml",
        (
            Limit("settings", "differences", "max", 0.0, allow=("pixels.max_pixels",)),
            Limit("pixel_values", "max_abs", "max", 0.0),
            Limit("image_embeds", "cosine", "min", 0.999),
            Limit("image_embeds", "cosine", "min", 0.99, "clip 84x84x2"),
            Limit("image_embeds", "rel_l2", "max", 0.02, "448x448"),
            Limit("tasks", "loss", "max", 0.5, non_inferior=True, min_examples=50),
            Limit("tasks", "score", "min", 80, min_examples=50),  # no difference of two sides
            Limit("tasks", "loss", "max", 1, "receipt", non_inferior=True, min_examples=9),
            Limit("tasks", "loss", "max", 2, "dial", min_examples=50),
            Limit("speed", "vision", "max", 1.05),
        ),
    )
    assert gate.levels == {"settings", "pixel_values", "image_embeds", "tasks", "speed"}


def test_a_limit_is_named_as_the_file_spells_it():
    keys = [limit.key for limit in parse_gate(WHOLE).limits]
    assert keys[2:5] == [
        "image_embeds.cosine_min",
        'image_embeds."clip 84x84x2".cosine_min',
        "image_embeds.448x448.rel_l2_max",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no limit"),
        ("[image_embeds]", r"\[image_embeds\] has no limit .*cosine_min"),
        ("[tasks]\nnon_inferior = true", r"\[tasks\] has no limit"),
        ("[tasks]\nmin_examples = 5", r"\[tasks\] has no limit"),
        ("[tasks]\nloss_max = 1\n[tasks.a]\nmin_examples = 5", r"\[tasks.a\] has no limit"),
        ("[tasks]\nscore_min = 1\nnon_inferior = true", "is of loss_max and worst_loss_max"),
        (
            "[tasks]\nloss_max = 1\nbeyond_noise = true",
            "beyond_noise is no key any more: .* needed non_inferior = true",
        ),
        ("[tasks]\nloss_max = 1\n[tasks.a]\nbeyond_noise = true", "no key any more"),
        ("[tasks]\nloss_max = 1\nmin_examples = 0", "needed an integer from 1"),
        ("[tasks]\nloss_max = 1\nmin_examples = 1.5", "is 1.5, needed an integer"),
        ("[tasks]\nloss_max = 1\nmin_examples = true", "is True, needed an integer"),
        ("[tasks]\nloss_max = 1\nmin_example = 5", "did you mean 'min_examples'"),
        ("[settings]\nallow = 'mrope_rule'", "needed a list of settings' names"),
        ("[settings]\nallow = [1]", "needed a list of settings' names"),
        ("[settings]\nallow = ['mrope-rule']", "'mrope-rule'; did you mean 'mrope_rule'"),
        ("[settings]\ndifferences_max = -1", "needed a number of at least 0"),
        ("[settings]", r"\[settings\] has no limit"),
        ("[text]\nexact_match_min = 1\nallow = []", "unknown metric 'allow'"),
        ("[image_embedds]\ncosine_min = 1", r"\[image_embedds\]; did you mean 'image_embeds'"),
        ("[image_embeds]\ncosin_min = 1", "'cosin_min'; did you mean 'cosine_min'"),
        ("[image_embeds]\ncosine_max = 1", "better when higher, needed cosine_min"),
        ("[speed]\nvision = 1", "needed vision_max"),
        ("[logits]\ncosine_min = 1", r"a metric of \[pixel_values\].*\[image_embeds\]"),
        ("[logits]\ntop1_min = 99.5", "top1_min is 99.5, needed a number between 0 and 1"),
        ("[speed]\nvision_max = -1", "needed a number of at least 0"),
        ("[text]\nexact_match_min = '0.9'", "exact_match_min is '0.9', needed a number"),
        ("[text]\nexact_match_min = true", "is True, needed a number"),
        ("[text]\nexact_match_min = nan", "is nan, needed a finite number"),
        ("[layers]\nown_sqnr_db_min = -inf", "is -inf, needed a finite number"),
        ("[logits]\nkl_max = 1" + "0" * 400, "needed a finite number"),
        ("[tasks]\nloss_max = 1\nnon_inferior = 1", "non_inferior is 1, needed true or false"),
        ("[text]\nnon_inferior = true", "unknown metric 'non_inferior'"),
        ("tasks = 1", "tasks is 1, needed a table"),
        ("[[tasks]]\nloss_max = 1", "needed a table"),
        ("[logits.a]\nkl_max = 1", "only pixel_values, .* have tables inside"),
        ("[tasks.a.b]\nloss_max = 1", r"\[tasks.a\] holds a table 'b'"),
        ("[tasks.'']\nloss_max = 1", "holds the table ''"),
        ("[tasks", "gate.toml is not TOML"),
        ("[tasks]\nloss_max = 1\nloss_max = 2", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_is_no_gate_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_gate(text)


@pytest.mark.parametrize("level", METRICS)
def test_every_metric_can_be_limited_on_one_side_and_only_there(level):
    for name, metric in METRICS[level].items():
        right, wrong = ("min", "max") if metric.better == "higher" else ("max", "min")
        limits = parse_gate(f"[{level}]\n{name}_{right} = 0.5").limits
        (limit,) = [limit for limit in limits if limit.level == level]
        assert (limit.metric, limit.bound, limit.value) == (name, right, 0.5)
        with pytest.raises(ValueError, match=f"needed {name}_{right}"):
            parse_gate(f"[{level}]\n{name}_{wrong} = 0.5")


def test_settings_are_held_by_a_gate_that_does_not_name_them():
    held = Limit("settings", "differences", "max", 0.0)
    assert held in parse_gate("[text]\nexact_match_min = 1").limits
    loose = parse_gate("[settings]\ndifferences_max = 2").limits
    assert loose == (Limit("settings", "differences", "max", 2.0),)


NAMES = st.sampled_from([*METRICS, "receipt", "448x448", "x"])
KEYS = st.sampled_from(["cosine_min", "loss_max", "kl_max", "non_inferior", "vision_max", "_max"])
VALUES = st.sampled_from(["0.5", "1", "true", "'a'", "nan", "[1]", "{a = 1}", "1979-05-27", "-0x"])


def is_gate_or_named(text):
    """Whether a text is a gate with limits or an error that begins with the file's name."""
    try:
        return bool(parse_gate(text, "g.toml").limits)
    except ValueError as error:
        return str(error).startswith("g.toml")


@given(st.lists(st.one_of(st.tuples(NAMES), st.tuples(NAMES, NAMES), st.tuples(KEYS, VALUES))))
@settings(max_examples=200, deadline=None)
def test_anything_near_a_gate_is_a_gate_or_a_named_error(lines):
    text = ""
    for line in lines:
        is_key = "_" in line[0] and line[0] not in METRICS
        text += " = ".join(line) + "\n" if is_key else f"[{'.'.join(line)}]\n"
    assert is_gate_or_named(text)


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_gate_or_a_value_error(text):
    assert is_gate_or_named(text)


def test_a_gate_file_is_read_under_its_own_name(tmp_path):
    path = tmp_path / "ship.toml"
    path.write_text("[text]\nexact_match_min = 1\n")
    assert read_gate(path).name == "ship.toml"
    path.write_bytes(b"[text]\nexact_match_min = 1 # \xff\n")
    with pytest.raises(ValueError, match=r"ship\.toml is not UTF-8"):
        read_gate(path)
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: "):
            read_gate(missing)
