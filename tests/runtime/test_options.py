import dataclasses

import pytest

from vlmedge.runtime.options import GenerationOptions


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
