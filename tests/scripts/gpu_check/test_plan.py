from importlib import import_module

import pytest
from gpu_check.plan import choose_steps, list_steps
from gpu_check.precisions import PRECISIONS, can_run
from hypothesis import given
from hypothesis import strategies as st

ALL = tuple(PRECISIONS)


@pytest.mark.parametrize("dry_run", [True, False])
def test_every_step_comes_behind_what_it_needs(make_config, dry_run):
    seen = set()
    for step in list_steps(make_config(precisions=ALL, dry_run=dry_run)):
        assert set(step.needs) <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)


def test_every_step_is_a_function_that_is_there(make_config):
    for step in list_steps(make_config(precisions=ALL)):
        module, _, function = step.function.partition(":")
        wanted = getattr(import_module(module), function).__code__.co_argcount
        assert wanted == 1 + len(step.args), step.name


def test_engines_of_a_dry_run_need_no_gpu_and_all_else_that_runs_them_does(make_config):
    steps = {step.name: step for step in list_steps(make_config(precisions=ALL))}
    assert not steps["model.fp8.engines"].needs_gpu
    assert "probe" not in steps["model.fp8.engines"].needs
    for name in ("probe", "ceilings", "torch", "model.fp16.times", "sample.int8.compare"):
        assert steps[name].needs_gpu


def test_engines_for_the_gpu_wait_for_the_probe(make_config):
    steps = {step.name: step for step in list_steps(make_config(precisions=ALL, dry_run=False))}
    for name in ALL:
        assert "probe" in steps[f"sample.{name}.engines"].needs


def test_correctness_comes_before_speed_and_float_before_what_is_made_of_it(make_config):
    names = [step.name for step in list_steps(make_config(precisions=ALL, dry_run=False))]
    last_of_sample = max(i for i, name in enumerate(names) if name.startswith("sample."))
    assert last_of_sample < names.index("checkpoint") < names.index("model.fp16.times")
    assert names.index("model.fp16.times") < names.index("model.float")
    assert names.index("torch") < names.index("model.fp16.bundle")


def test_bfloat16_is_compared_with_what_the_cpu_can_run(make_config):
    steps = {step.name: step for step in list_steps(make_config(precisions=("fp16", "bf16")))}
    assert "sample.fp16.reference" in steps["sample.bf16.compare"].needs
    assert "sample.bf16.reference" not in steps
    assert "model.bf16.times" not in steps


def test_steps_are_chosen_by_name_and_by_beginning(make_config):
    steps = list_steps(make_config(precisions=ALL))
    chosen = choose_steps(steps, ["model.fp16", "machine"], (), ())
    names = [step.name for step in chosen]
    assert names == ["machine", "model.fp16.bundle", "model.fp16.engines", "model.fp16.times"]


def test_what_is_done_is_left_out_unless_it_is_asked_for_again(make_config):
    steps = list_steps(make_config())
    done = {"machine", "sample.float"}
    names = [step.name for step in choose_steps(steps, (), done, ["machine"])]
    assert "machine" in names
    assert "sample.float" not in names
    assert "sample.fp16.bundle" in names


def test_a_name_that_no_step_has_is_an_error_that_names_them(make_config):
    steps = list_steps(make_config())
    for only, again in ((["sample.fp"], ()), ((), ["nothing"])):
        with pytest.raises(ValueError, match=r"sample\.float"):
            choose_steps(steps, only, (), again)


@given(major=st.integers(7, 12), minor=st.integers(0, 9))
def test_fp8_begins_with_ada(major, minor):
    assert can_run("fp8", f"{major}.{minor}") == (major > 8 or (major == 8 and minor == 9))
