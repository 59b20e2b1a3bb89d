import pytest
import typer

from vlmedge.quant.cli.exit_code import errors_exit_with_2
from vlmedge.runtime import BundleError


@pytest.mark.parametrize(
    "error", [BundleError("no\nbundle"), ValueError("no bundle"), OSError("no bundle"), KeyError(1)]
)
def test_every_error_is_one_line_and_2(error, capsys, monkeypatch):
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)
    with pytest.raises(typer.Exit) as raised, errors_exit_with_2("check"):
        raise error
    assert raised.value.exit_code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("vlmedge check: ")
    assert captured.out == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Exit(1), typer.BadParameter("x")])
def test_interruptions_exits_and_wrong_options_pass_through(error):
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), errors_exit_with_2("check"):
        raise error


def test_debugging_shows_where_an_error_came_from(monkeypatch):
    monkeypatch.setenv("VLMEDGE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError), errors_exit_with_2("check"):
        raise ZeroDivisionError


def test_without_an_error_nothing_happens(capsys):
    with errors_exit_with_2("check"):
        pass
    assert capsys.readouterr() == ("", "")
