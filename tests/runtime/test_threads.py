import pytest

from vlmedge.runtime import Model, threads
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.threads import check_num_threads, limit_threads


def test_a_number_up_to_four_times_the_cores_is_taken(monkeypatch):
    monkeypatch.setattr(threads, "count_cpus", lambda: 32)
    assert limit_threads() == 128
    check_num_threads(128)
    with pytest.raises(ValueError, match=r"129, needed at most 128: .* 32 CPU cores"):
        check_num_threads(129)


def test_a_small_machine_still_takes_sixteen(monkeypatch):
    monkeypatch.setattr(threads, "count_cpus", lambda: 1)
    check_num_threads(16)
    check_num_threads(None)
    with pytest.raises(ValueError, match="at most 16"):
        check_num_threads(17)


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "4"])
def test_what_is_no_positive_integer_is_refused(number):
    with pytest.raises(ValueError, match="needed a positive integer"):
        check_num_threads(number)


def test_a_model_refuses_more_before_it_starts_any(make_bundle):
    with pytest.raises(ValueError, match="needed at most"):
        Model.load(make_bundle("tiny").bundle, num_threads=100_000)


@pytest.mark.parametrize(
    "args",
    [
        ["run", "b", "hi"],
        ["bench", "b"],
        ["check", "b", "--against", "b", "--data", "d"],
        ["diff", "a", "b", "--data", "d"],
        ["quantize", "b", "o", "--recipe", "orin"],
        ["sensitivity", "b", "--recipe", "orin", "--data", "d"],
        ["sweep", "s.toml", "--out", "o"],
    ],
    ids=lambda args: args[0],
)
def test_a_command_refuses_more_as_a_wrong_option(args, capsys):
    assert cli.main([*args, "--threads", "100000"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "100000, needed at most" in err


def test_the_quantizers_sessions_refuse_more(tmp_path):
    from vlmedge.quant.graph.stages import StageOptions

    assert StageOptions(tmp_path, 0).num_threads == 0
    with pytest.raises(ValueError, match="needed at most"):
        StageOptions(tmp_path, 100_000)
