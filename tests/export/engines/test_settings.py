"""Build settings: what is refused, and that they can be written down and read again."""

import dataclasses
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.cli import build
from vlmedge.export.engines.settings import BuildSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch", 0),
        ("max_images", -1),
        ("prefill_tokens", 0),
        ("prefill_tokens", 513),
        ("split", 0),
        ("max_pixels", 0),
        ("context", -5),
        ("workspace_mib", 0),
        ("optimization_level", 6),
        ("optimization_level", -1),
        ("compute_capability", "86"),
        ("compute_capability", "sm_86"),
        ("compute_capability", "8.6\n"),
        ("accept_warning", ("",)),
        ("accept_warning", ("fine", "two\nlines")),
    ],
)
def test_a_value_that_fits_no_bundle_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=f"{name} (is|holds) "):
        BuildSettings(**{name: value})


@pytest.mark.parametrize("value", ["7.5", "8.6", "12.0", "11.0"])
def test_compute_capabilities_of_one_and_two_digits_are_taken(value):
    assert BuildSettings(compute_capability=value).compute_capability == value


def test_what_was_not_given_is_not_recorded():
    assert BuildSettings().to_record() == {}
    given_settings = BuildSettings(split=2, video=True, context=1024)
    assert given_settings.to_record() == {"split": "2", "video": "True", "context": "1024"}


def some(strategy):
    return st.none() | strategy


SETTINGS = st.builds(
    BuildSettings,
    max_batch=st.integers(1, 9),
    max_images=st.integers(1, 9),
    max_pixels=some(st.integers(1, 10**6)),
    context=some(st.integers(1, 10**5)),
    prefill_tokens=st.integers(1, 512),
    split=st.integers(1, 28),
    separate_lm_head=st.booleans(),
    video=st.booleans(),
    workspace_mib=some(st.integers(1, 10**4)),
    optimization_level=some(st.integers(0, 5)),
    weight_streaming=st.booleans(),
    compute_capability=some(st.sampled_from(["8.6", "12.0"])),
    accept_warning=st.lists(
        st.sampled_from(["Unused Input: a b", "falling back", "--odd"]), max_size=2
    ).map(tuple),
    timing_cache=some(st.sampled_from([Path("a.timing"), Path("b c/d.timing")])),
)


@given(SETTINGS)
def test_the_recorded_command_line_gives_the_settings_back(settings):
    app = typer.Typer()
    app.command()(build)
    command = typer.main.get_command(app)
    context = command.make_context("build", ["BUNDLE", *settings.to_options()])
    names = [field.name for field in dataclasses.fields(BuildSettings)]
    got = {name: context.params[name] for name in names}
    got["accept_warning"] = tuple(got["accept_warning"] or ())
    assert BuildSettings(**got) == settings
