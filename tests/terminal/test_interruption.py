"""Ctrl-C and a plain kill, at any time: one line that says what is kept, and no traceback."""

import re
import signal
import sys

import pytest

# What an import of seconds does from a cold disk: it waits at the first module that is large
SLOW_IMPORT = """
import os, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            while True:
                time.sleep(0.01)

sys.argv = ["vlmedge", *sys.argv[1:]]
sys.meta_path.insert(0, Slow())
from vlmedge.runtime.cli.start import main
sys.exit(main())
"""

# The program stops in its work behind a call of a function of ours, and says so on the screen
HELD = """
import importlib, sys, time
module, _, name = {target!r}.partition(":")
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), []

def hold(*args, **kwargs):
    result = real(*args, **kwargs)
    calls.append(0)
    if len(calls) == {count}:
        sys.stderr.write("<held>\\n")
        while True:
            time.sleep(0.01)
    return result

setattr(owner, name, hold)
sys.argv = ["vlmedge", *sys.argv[1:]]
from vlmedge.runtime.cli.start import main
sys.exit(main())
"""
HELD_MARK = "<held>"


def check_one_line(terminal, pattern, code=130):
    """The last line is ours, and the only one of its kind; behind the terminal's ^C at most."""
    ended = terminal.finish()
    lines = [line.replace("^C", "") for line in terminal.lines if line != HELD_MARK]
    assert ended == code, terminal.text
    assert "Traceback" not in terminal.raw.decode()
    assert re.fullmatch(pattern, lines[-1]), terminal.text
    assert len([line for line in lines if line.startswith("vlmedge ")]) == 1
    assert "━" not in terminal.text
    assert not terminal.screen.cursor.hidden


def start_slowly(open_terminal, module, *args):
    program = [sys.executable, "-c", SLOW_IMPORT.format(module=module)]
    return open_terminal(*args, program=program)


@pytest.mark.parametrize("module", ["typer", "vlmedge.quant.cli.quantize"])
def test_the_status_is_on_the_screen_before_the_first_large_import(open_terminal, module):
    terminal = start_slowly(open_terminal, module, "quantize", "a", "b", "--recipe", "cpu")
    terminal.wait_for("^vlmedge quantize: starting$")


def test_a_pipe_and_help_see_no_status(open_terminal, run_in_terminal):
    terminal = run_in_terminal("quantize", "--help")
    assert not terminal.saw("starting")
    program = ["sh", "-c", f"{sys.executable} -m vlmedge.runtime run none there 2>&1 | cat"]
    terminal = run_in_terminal(program=program)
    assert terminal.lines
    assert not terminal.saw("starting")
    assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize("module", ["typer", "vlmedge.quant.cli.quantize", "onnx"])
def test_ctrl_c_while_importing_ends_at_once_and_says_that_nothing_began(open_terminal, module):
    args = ("quantize", "a", "b", "--recipe", "cpu")
    terminal = start_slowly(open_terminal, module, *args)
    terminal.wait_for("starting")
    terminal.press("\x03")
    check_one_line(terminal, "vlmedge quantize: interrupted; it had not begun, nothing was changed")


# Command and where it is stopped; what it has to say of what is kept
NOTHING = "nothing was written"
CASES = {
    "run": (("run", "{bundle}", "What?"), "vlmedge.runtime.model:Model.load", 1, NOTHING),
    "inspect": (
        ("inspect", "{bundle}"),
        "vlmedge.runtime.bundle.inspection:check_file",
        1,
        NOTHING,
    ),
    "bench": (
        ("bench", "{bundle}", "--runs", "1", "--new-tokens", "2"),
        "vlmedge.runtime.cli.bench:make_picture",
        1,
        NOTHING,
    ),
    "plan": (
        ("plan", "{checkpoint}", "--device", "orin-nano-8gb", "--image", "640x480"),
        "vlmedge.export.planning.planner:make_plan",
        1,
        NOTHING,
    ),
    "export": (
        ("export", "{checkpoint}", "{out}/bundle"),
        "vlmedge.export.exporter:write_data",
        1,
        "no bundle was written",
    ),
    "export, done": (
        ("export", "{checkpoint}", "{out}/bundle", "--selfcheck"),
        "vlmedge.export.verify.selfcheck:check_bundle",
        1,
        r"\S+ is written, its checks are not done",
    ),
    "quantize": (
        ("quantize", "{float}", "{out}/bundle", "--recipe", "{recipe}", "--data", "{data}"),
        "vlmedge.quant.quantize.work_folder:WorkFolder.save",
        3,
        r"3 of 8 finished stages are kept in \S+: the same command goes on from there",
    ),
    "quantize, reading": (
        ("quantize", "{float}", "{out}/bundle", "--recipe", "{recipe}", "--data", "{data}"),
        "vlmedge.quant.quantize.quantize:make_prompts",
        1,
        "nothing is kept, the same command starts anew",
    ),
    "quantize --auto": (
        (
            *("quantize", "{float}", "{out}/bundle", "--recipe", "{recipe}", "--data", "{data}"),
            *("--auto", "--gate", "{loose}"),
        ),
        "vlmedge.quant.quantize.work_folder:WorkFolder.save",
        2,
        r"2 finished stages are kept in \S+: the same command goes on from there",
    ),
    "check": (
        ("check", "{bundle}", "--against", "{float}", "--data", "{data}"),
        "vlmedge.quant.check.run:_observe",
        1,
        NOTHING,
    ),
    "check --report": (
        ("check", "{bundle}", "--against", "{float}", "--data", "{data}", "--report", "{out}/r"),
        "vlmedge.quant.check.run:_observe",
        1,
        "no report was written",
    ),
    "diff": (
        ("diff", "{float}", "{bundle}", "--data", "{data}"),
        "vlmedge.quant.compare.diff:trace_reference",
        1,
        NOTHING,
    ),
    "sensitivity": (
        ("sensitivity", "{float}", "--recipe", "{recipe}", "--data", "{data}"),
        "vlmedge.quant.quantize.work_folder:WorkFolder.save",
        3,
        "nothing is kept; with --out FOLDER an interrupted run goes on",
    ),
    "sensitivity --out": (
        ("sensitivity", "{float}", "--recipe", "{recipe}", "--data", "{data}", "--out", "{out}/s"),
        "vlmedge.quant.quantize.work_folder:WorkFolder.save",
        3,
        r"3 finished stages are kept in \S+: the same command goes on from there",
    ),
    "sweep": (
        ("sweep", "{sweep}", "--out", "{out}/sweep"),
        "vlmedge.quant.sweep.units:_Run._tell",
        2,
        r"1 of 3 units is kept in \S+: the same command goes on from there",
    ),
}


def start_held(open_terminal, desk, out, case, **options):
    words, target, count, _ = CASES[case]
    args = [word.format(out=out, **vars(desk)) for word in words]
    program = [sys.executable, "-c", HELD.format(target=target, count=count)]
    terminal = open_terminal(*args, program=program, **options)
    terminal.wait_for(HELD_MARK)
    return terminal


def list_left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_at_work_says_in_one_line_what_is_kept(open_terminal, desk, tmp_path, case):
    terminal = start_held(open_terminal, desk, tmp_path, case, columns=400)
    terminal.press("\x03")
    name = CASES[case][0][0]
    check_one_line(terminal, f"vlmedge {name}: interrupted; {CASES[case][3]}")
    assert not [name for name in list_left(tmp_path) if ".partial" in name or name == "bundle"] or (
        case == "export, done"
    )


def test_a_plain_kill_is_told_as_such_and_leaves_as_little(open_terminal, desk, tmp_path):
    terminal = start_held(open_terminal, desk, tmp_path, "export", columns=400)
    assert any(".partial" in name for name in list_left(tmp_path))
    terminal.kill(signal.SIGTERM)
    check_one_line(terminal, "vlmedge export: terminated; no bundle was written", 143)
    assert list_left(tmp_path) == []


def test_a_kill_keeps_the_stages_of_a_quantization(open_terminal, desk, tmp_path, run_in_terminal):
    terminal = start_held(open_terminal, desk, tmp_path, "quantize", columns=400)
    terminal.kill(signal.SIGTERM)
    check_one_line(terminal, r"vlmedge quantize: terminated; 3 of 8 finished stages are .+", 143)
    args = [word.format(out=tmp_path, **vars(desk)) for word in CASES["quantize"][0]]
    again = run_in_terminal(*args, columns=400)
    assert ", 3 stages of an earlier run" in again.text
    assert list_left(tmp_path) == ["bundle"]


def test_a_closed_terminal_ends_a_command_in_order(open_terminal, desk, tmp_path):
    terminal = start_held(open_terminal, desk, tmp_path, "export", columns=400)
    terminal.hang_up()
    assert terminal.wait() == 128 + signal.SIGHUP
    assert list_left(tmp_path) == []


# What is imported before the command's work, by whom: a signal comes in the midst of each
EARLY = """
import os, signal, sys

class Signaller:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.argv = ["vlmedge", *sys.argv[1:]]
sys.meta_path.insert(0, Signaller())
from vlmedge.runtime.cli.start import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module",
    [
        "vlmedge.runtime.terminal.status_line",
        "vlmedge.runtime.cli.main",
        "rich",
        "numpy",
        "onnxruntime",
    ],
)
def test_ctrl_c_at_any_import_is_one_line(open_terminal, desk, tmp_path, module):
    args = [word.format(out=tmp_path, **vars(desk)) for word in CASES["quantize"][0]]
    program = [sys.executable, "-c", EARLY.format(module=module)]
    terminal = open_terminal(*args, program=program, columns=400)
    check_one_line(terminal, "vlmedge quantize: interrupted; it had not begun, nothing was changed")


# A library that makes another error of an interrupt, and one that swallows the first
CONVERTED = """
import sys, types
module = types.ModuleType("plugin")

def command():
    "Does work."
    from vlmedge.runtime.terminal.interruption import interruptible
    with interruptible(lambda: "half is kept"):
        try:
            print("at work", file=sys.stderr, flush=True)
            while True:
                pass
        except KeyboardInterrupt as error:
            raise {raised} from error
        finally:
            {cleaning}

module.command = command
sys.modules["plugin"] = module
from importlib.metadata import EntryPoint
from vlmedge.runtime.cli import main as cli
cli.find_commands = lambda: {{"plugin": EntryPoint("plugin", "plugin:command", cli.GROUP)}}
cli.read_help = lambda entry: ""
sys.argv = ["vlmedge", "plugin"]
from vlmedge.runtime.cli.start import main
sys.exit(main())
"""


def test_an_interrupt_that_a_library_makes_an_error_of_is_told_as_one(open_terminal):
    code = CONVERTED.format(raised='ImportError("initialization failed")', cleaning="pass")
    terminal = open_terminal(program=[sys.executable, "-c", code])
    terminal.wait_for("at work")
    terminal.press("\x03")
    check_one_line(terminal, "vlmedge plugin: interrupted; half is kept")


def test_a_second_ctrl_c_lets_the_cleaning_go_on_and_a_third_ends_it(open_terminal):
    cleaning = "import time; print('cleans', file=sys.stderr, flush=True); time.sleep(1e6)"
    code = CONVERTED.format(raised="error", cleaning=cleaning)
    terminal = open_terminal(program=[sys.executable, "-c", code])
    terminal.wait_for("at work")
    terminal.press("\x03")
    terminal.wait_for("cleans")
    terminal.press("\x03")
    terminal.wait_for("vlmedge plugin: cleaning up; one more signal ends it at once")
    terminal.press("\x03")
    assert terminal.finish() == 130
    assert terminal.lines[-1] == "vlmedge plugin: ended at once; temporary files may be left"
