"""Streams that a shell can hand a command: without a reader, closed, full."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vlmedge.runtime.cli import main as cli

PICTURES = Path(__file__).parents[2] / "samples" / "pictures"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def shell():
    """shell(line, *args): the line in bash, where {} is `vlmedge ARGS`."""

    def run(line: str, *args: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = shlex.join([sys.executable, "-m", "vlmedge.runtime", *map(str, args)])
        env = {name: value for name, value in os.environ.items() if name != "VLMEDGE_DEBUG"}
        done = subprocess.run(
            ["bash", "-c", line.replace("{}", command)],
            input=stdin,
            capture_output=True,
            env=env,
            check=False,
            timeout=300,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


@pytest.fixture(scope="module")
def commands(make_bundle, tmp_path_factory, checkpoint_script) -> dict[str, tuple]:
    """A command line of each kind that prints a result."""
    made = make_bundle("tiny")
    folder = tmp_path_factory.mktemp("streams")
    return {
        "help": ("--help",),
        "run": ("run", made.bundle, "What is it?", "--max-new-tokens", "8"),
        "inspect": ("inspect", made.bundle, "--json"),
        "table": ("inspect", made.bundle),
        "plan": ("plan", made.bundle, "--device", "orin-nano-8gb"),
        "export": ("export", made.checkpoint, folder / "bundle"),
        "diff": ("diff", made.bundle, made.bundle, "--data", PICTURES, "--limit", "1"),
    }


NAMES = ("help", "run", "inspect", "table", "plan", "diff")


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_has_gone_ends_a_command_quietly(shell, commands, name):
    """The reader is gone before the first byte: bash starts `true`, which reads nothing."""
    line = "exec 3> >(exec true); wait $!; {} >&3; echo $?"
    done = shell(line, *commands[name])
    assert done.stderr == ""
    assert done.stdout == "141\n"


def test_a_reader_that_goes_away_stops_decoding(make_bundle):
    """The answer has no end before its limit, the reader takes one piece of it."""
    code = (
        "import sys\n"
        "from vlmedge.runtime.cli import main as cli\n"
        "from vlmedge.runtime.decode import generate\n"
        "write, steps = generate.Generation._write, []\n"
        "def count(self, logits):\n"
        "    steps.append(write(self, logits))\n"
        "    self._writers[0].finish_reason = None\n"
        "    return ['piece']\n"
        "generate.Generation._write = count\n"
        "code = cli.main(sys.argv[1:])\n"
        "print(len(steps), code, file=sys.stderr)\n"
    )
    args = ["run", str(make_bundle("tiny").bundle), "hi", "--max-new-tokens", "20000"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(5) == "piece"
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        (line,) = process.stderr.read().splitlines()
    process.wait(60)
    steps, code = map(int, line.split())
    assert code == 141
    assert 1 <= steps < 20000


@needs_full
@pytest.mark.parametrize("name", NAMES)
def test_a_full_stdout_is_one_line_that_names_it(shell, commands, name):
    done = shell("{} >/dev/full", *commands[name])
    assert done.returncode == (2 if name in ("diff", "plan") else 1)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("vlmedge")
    assert "stdout: No space left on device" in done.stderr


@pytest.mark.parametrize("name", ["help", "export"])
def test_a_closed_stdout_is_told_before_anything_is_done(shell, commands, name):
    done = shell("{} >&-", *commands[name])
    assert done.returncode == 1
    assert name != "export" or not commands[name][2].exists()
    assert (
        done.stderr == "vlmedge: stdout is closed: redirect it, to /dev/null if nobody reads it\n"
    )


@pytest.mark.parametrize("name", ["help", "run", "diff"])
def test_a_closed_stderr_changes_nothing(shell, commands, name):
    done = shell("{} 2>&-", *commands[name])
    assert done.returncode == 0
    assert done.stdout != ""


@pytest.mark.parametrize("redirection", ["2>&-", pytest.param("2>/dev/full", marks=needs_full)])
def test_an_error_that_nobody_can_read_still_has_its_exit_code(shell, redirection):
    assert shell(f"{{}} {redirection}", "inspect", "no-such-bundle").returncode == 1
    assert shell(f"{{}} {redirection}", "inspect", "--no-such-option").returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(shell):
    """What a library prints would go into the first file that is opened."""
    code = (
        "import os\nfrom vlmedge.runtime.cli import main as cli\n"
        "class Group:\n"
        "    def main(self, *args, **kwargs):\n"
        "        print(os.open(os.devnull, os.O_RDONLY))\n"
        "cli.make_group = Group\n"
        "raise SystemExit(cli.main(['x']))"
    )
    done = shell(f"{shlex.join([sys.executable, '-c', code])} <&- 2>&-")
    assert done.returncode == 0
    assert int(done.stdout) > 2


def test_everything_closed_is_an_exit_code(shell, commands):
    assert shell("{} <&- >&- 2>&-", *commands["inspect"]).returncode == 1


@pytest.mark.parametrize("args", [("run", "B", "-"), ("run", "B", "hi", "--image", "-")])
def test_a_closed_stdin_is_told_where_it_would_be_read(shell, args):
    done = shell("{} <&-", *args)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "stdin is closed" in done.stderr


def test_a_picture_from_stdin_is_the_picture_of_the_file(shell, make_bundle, picture):
    args = ("run", make_bundle("tiny").bundle, "What is it?", "--max-new-tokens", "4", "--json")
    piped = json.loads(shell("{}", *args, "--image", "-", stdin=picture.read_bytes()).stdout)
    given = json.loads(shell("{}", *args, "--image", picture).stdout)
    assert piped["token_ids"] == given["token_ids"]
    assert piped["num_image_tokens"] == given["num_image_tokens"] > 0


@pytest.mark.parametrize(
    ("args", "stdin", "said"),
    [
        (("hi", "--image", "-"), b"", "stdin, which is empty"),
        (("hi", "--image", "-"), b"no picture", "no picture of a known format"),
        (("-", "--image", "-"), b"x", "more than once"),
        (("hi", "--image", "-", "--image", "-"), b"x", "more than once"),
    ],
)
def test_what_stdin_can_not_be_is_one_line(shell, make_bundle, args, stdin, said):
    done = shell("{}", "run", make_bundle("tiny").bundle, *args, stdin=stdin)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_hosts_own_streams_stay_in_their_place(capsys):
    before = sys.stdout, sys.stderr
    assert cli.main(["--version"]) == 0
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out.startswith("vlmedge ")
