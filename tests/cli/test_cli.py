"""The command line itself: help, versions, errors of one line, exit codes."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from vlmedge.runtime.cli import main as cli

COMMANDS = ("run", "inspect", "bench", "export")
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "tokenizers", "PIL")


@pytest.fixture
def one_line(capsys):
    """one_line(*args) -> exit code and the only line on stderr, with nothing on stdout."""

    def run(*args: str) -> tuple[int, str]:
        code = cli.main(args)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return code, err

    return run


def test_help_lists_every_command_with_its_line_and_imports_nothing_heavy(run_cli):
    done = run_cli("--help", after=f"assert not set(sys.modules) & set({HEAVY!r}), sys.modules")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        (line,) = [line for line in done.stdout.splitlines() if f" {command} " in line]
        assert len(line.strip(" │").removeprefix(command).strip()) > 10


def test_no_arguments_is_help(run_cli):
    assert run_cli().stdout == run_cli("--help").stdout


def test_every_command_of_ours_is_found_and_has_a_help_line():
    found = cli.find_commands()
    assert set(COMMANDS) <= set(found)
    assert all(cli.read_help(found[command]) for command in COMMANDS)


def test_the_help_line_is_the_one_of_the_loaded_command():
    for name in ("run", "inspect", "bench"):
        entry = cli.find_commands()[name]
        assert cli.read_help(entry) == entry.load().__doc__.partition("\n\n")[0]


def test_version_is_the_installed_one(capsys):
    from vlmedge.runtime import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlmedge {__version__}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--colour"], "--colour"),
        (["rum"], "there is no command 'rum'; did you mean 'run'?"),
        (["run"], "BUNDLE"),
        (["run", "bundle"], "PROMPT"),
        (["run", "bundle", "prompt", "extra"], "extra"),
        (["run", "bundle", "prompt", "--image"], "--image"),
        (["run", "bundle", "prompt", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["run", "bundle", "prompt", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["run", "bundle", "prompt", "--top-p", "1.5"], "--top-p"),
        (["run", "bundle", "prompt", "--mrope-rule", "mine"], "--mrope-rule"),
        (["inspect", "bundle", "--hash"], "--hash"),
        (["bench", "bundle", "--runs", "0"], "--runs"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_line_that_names_it(one_line, args, said):
    code, line = one_line(*args)
    assert code == 2
    assert said in line
    assert line.rstrip().endswith("--help)")


def test_export_of_nothing_exits_2(one_line):
    pytest.importorskip("onnx_ir")
    code, line = one_line("export", "--weights", "int3", "checkpoint", "bundle")
    assert code == 2
    assert "int3" in line


def test_a_command_without_its_extra_says_which_to_install(run_cli):
    done = run_cli("export", "checkpoint", "bundle", blocked=["onnx_ir"])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "vlmedge export needs onnx-ir: pip install 'vlmedge[export]'\n"


def test_run_without_onnxruntime_says_to_install_cpu(run_cli, tiny_bundle):
    done = run_cli("run", tiny_bundle, "hello", blocked=["onnxruntime"])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "vlmedge[cpu]" in done.stderr


def test_the_extra_named_as_the_command_goes_first():
    missing = ModuleNotFoundError("No module named 'onnx'", name="onnx.helper")
    assert cli.find_extra(missing, ["quant"]) == ("onnx", "quant")
    assert cli.find_extra(missing, ["other"]) == ("onnx", "export")
    assert cli.find_extra(ModuleNotFoundError(name="no_such_thing"), ["export"]) is None


def _fake_command(monkeypatch, function):
    entry = EntryPoint("fake", "fake_commands:fake", cli.GROUP)
    monkeypatch.setitem(sys.modules, "fake_commands", function)
    monkeypatch.setattr(cli, "find_commands", lambda: {"fake": entry})
    monkeypatch.setattr(cli, "read_help", lambda entry: "")


class _Raiser:
    """A module whose command raises."""

    def __init__(self, error: BaseException) -> None:
        def fake() -> None:
            raise error

        self.fake = fake


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("sizes\ndiffer"), "vlmedge fake: sizes differ\n"),
        (FileNotFoundError(2, "No such file", "a.png"), "vlmedge fake: a.png: No such file\n"),
        (MemoryError(), "vlmedge fake: out of memory\n"),
        (
            KeyError("inner"),
            "vlmedge fake: unexpected error KeyError: 'inner'; set VLMEDGE_DEBUG=1 for more\n",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_1(monkeypatch, one_line, error, line):
    _fake_command(monkeypatch, _Raiser(error))
    monkeypatch.delenv("VLMEDGE_DEBUG", raising=False)
    assert one_line("fake") == (1, line)


def test_debug_shows_the_traceback(monkeypatch):
    _fake_command(monkeypatch, _Raiser(KeyError("inner")))
    monkeypatch.setenv("VLMEDGE_DEBUG", "1")
    with pytest.raises(KeyError, match="inner"):
        cli.main(["fake"])


def test_interrupt_exits_130_with_one_line(monkeypatch, capsys):
    _fake_command(monkeypatch, _Raiser(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr() == ("", "vlmedge fake: interrupted\n")


def test_a_reader_that_goes_away_is_no_error(tiny_bundle):
    """Stdout is a pipe without a reader from the start: every write fails."""
    preface = "import os; reader, writer = os.pipe(); os.dup2(writer, 1); os.close(reader); "
    code = (
        preface
        + "import sys; from vlmedge.runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tiny_bundle), "--json"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_broken_command_leaves_the_others_alone(monkeypatch, capsys):
    """Help must not import: a plug-in that fails at import is only told of when it is called."""
    broken = EntryPoint("broken", "no_such_module_anywhere:run", cli.GROUP)
    monkeypatch.setattr(cli, "find_commands", lambda: {"broken": broken})
    assert cli.main(["--help"]) == 0
    assert "broken" in capsys.readouterr().out
    assert cli.main(["broken"]) == 1
    assert "no_such_module_anywhere" in capsys.readouterr().err
