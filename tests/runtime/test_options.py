import dataclasses

import pytest

from vlmedge.runtime.bundle.generation_defaults import GenerationDefaults, describe_settings
from vlmedge.runtime.options import GenerationOptions, check_option_ids, make_sampling_rule


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 1.1),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", ("x" * 5000,)),
        ("stop", ("x",) * 101),
        ("min_new_tokens", -1),
        ("min_p", 1.5),
        ("typical_p", 0),
        ("no_repeat_ngram_size", -1),
        ("suppress_tokens", ("a",)),
        ("suppress_tokens", 5),
        ("suppress_tokens", (True,)),
        ("bad_words_ids", ((),)),
        ("bad_words_ids", (5,)),
        ("bad_words_ids", ("ab",)),
        ("bad_words_ids", ((1,),) * 10_001),
    ],
)
def test_an_option_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        GenerationOptions(**{name: value})


def test_sampling_at_temperature_zero_is_a_contradiction():
    with pytest.raises(ValueError, match="temperature"):
        GenerationOptions(do_sample=True, temperature=0)


@pytest.mark.parametrize("stop", ["end", ["end"], ("end",)])
def test_stop_may_be_one_string_or_several(stop):
    assert GenerationOptions(stop=stop).stop == ("end",)


def test_options_are_frozen_and_know_no_other_names():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationOptions().seed = 3
    with pytest.raises(TypeError):
        GenerationOptions(max_tokens=3)


def test_a_rule_has_every_default_and_a_request_goes_before_it():
    defaults = GenerationDefaults(
        min_new_tokens=3, suppress_tokens=(1,), bad_words_ids=((2,),), no_repeat_ngram_size=4
    )
    rule = make_sampling_rule(GenerationOptions(), defaults, (9,), 20)
    assert (rule.min_new_tokens, rule.suppress_tokens, rule.bad_words_ids) == (3, (1,), ((2,),))
    assert (rule.no_repeat_ngram_size, rule.end_ids, rule.max_new_tokens) == (4, (9,), 20)
    asked = GenerationOptions(
        min_new_tokens=0, suppress_tokens=[], bad_words_ids=[[5, 6]], no_repeat_ngram_size=0
    )
    rule = make_sampling_rule(asked, defaults)
    assert (rule.min_new_tokens, rule.suppress_tokens, rule.bad_words_ids) == (0, (), ((5, 6),))
    assert rule.no_repeat_ngram_size == 0


def test_a_least_length_of_the_request_replaces_that_of_prompt_and_answer():
    defaults = GenerationDefaults(min_length=50)
    assert make_sampling_rule(GenerationOptions(), defaults).min_length == 50
    assert make_sampling_rule(GenerationOptions(min_new_tokens=2), defaults).min_length == 0


@pytest.mark.parametrize("field", dataclasses.fields(GenerationDefaults), ids=lambda f: f.name)
def test_nothing_of_the_checkpoint_is_left_where_its_defaults_are_ignored(field):
    values = {"bool": True, "int": 5, "float": 0.4, "int | None": 5, "float | None": 0.4}
    value = values.get(field.type, ((3,),) if "tuple[tuple[int" in field.type else (3,))
    if field.name == "exponential_decay_length_penalty":
        value = (3, 1.1)
    if field.name == "sequence_bias":
        value = (((3,), 1.0),)
    defaults = GenerationDefaults(**{field.name: value})
    plain = make_sampling_rule(GenerationOptions(ignore_defaults=True), defaults, (9,))
    assert plain == make_sampling_rule(GenerationOptions(), GenerationDefaults(), (9,))
    if field.name not in ("max_new_tokens", "max_length", "stop_strings"):  # not of the rule
        assert make_sampling_rule(GenerationOptions(), defaults, (9,)) != plain


def test_ids_that_the_model_has_not_are_named():
    with pytest.raises(ValueError, match="suppress_tokens holds 480"):
        check_option_ids(GenerationOptions(suppress_tokens=(1, 480)), 480)
    with pytest.raises(ValueError, match="bad_words_ids holds -1"):
        check_option_ids(GenerationOptions(bad_words_ids=((1, -1),)), 480)


def test_settings_that_are_on_are_described_in_a_few_words():
    assert describe_settings(GenerationDefaults()) == ()
    defaults = GenerationDefaults(
        max_new_tokens=1_000_000,
        suppress_tokens=tuple(range(500)),
        remove_invalid_values=True,
        exponential_decay_length_penalty=(5, 1.25),
        min_p=0.1,
    )
    assert describe_settings(defaults) == (
        "max_new_tokens 1000000",
        "exponential_decay_length_penalty 1.25 after 5 tokens",
        "suppress_tokens (500)",
        "remove_invalid_values",
    )
    assert "min_p 0.1" in describe_settings(dataclasses.replace(defaults, do_sample=True))
