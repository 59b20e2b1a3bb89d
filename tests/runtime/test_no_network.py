"""What the system sees of us: no socket, and no file outside the folder that was named.

Each command runs under strace with its sub-processes, in an environment of its own: libraries hold
back where a variable like CI is set, so none of ours is handed on.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ALIVE_S = 60  # ONNX Runtime's reports began 13 s after its import
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
CALLS = "%network,open,openat,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,"
CALLS += "link,linkat,symlink,symlinkat"
OPENED = re.compile(r"\b(?:open|openat|creat)\((?:.*?<(.*?)>, )?\"(.*?)\"(.*)")
PLACED = re.compile(r"\b(?:mkdir|mknod|rename|link|symlink)\w*\(")
NAMED = re.compile(r"(?:<([^<>]*)>, )?\"((?:[^\"\\]|\\.)*)\"")
SOCKET = re.compile(r"\bsocket\((\w+)|\b(?:connect|sendto|sendmsg|sendmmsg|bind)\((.*)")
CLI = "import sys; from vlmedge.runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
STAY = f"""
import sys, time
from vlmedge.runtime import GenerationOptions, Model

with Model.load(sys.argv[1]) as model:
    model.answer("What is it?", [sys.argv[2]], options=GenerationOptions(max_new_tokens=2))
    time.sleep({ALIVE_S})
"""


class Trace:
    """One process and its children under strace."""

    def __init__(self, folder: Path, code: str, *args: object) -> None:
        """Start it in an empty folder, with an empty home and an empty TMPDIR."""
        self.home, self.tmp, self.cwd = (folder / name for name in ("home", "tmp", "cwd"))
        for path in (self.home, self.tmp, self.cwd):
            path.mkdir(parents=True)
        self._log = folder / "strace.log"
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env |= {"HOME": str(self.home), "TMPDIR": str(self.tmp), "LANG": "C.UTF-8"}
        # Python's own cache of compiled modules, wherever those are installed
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        command = ["strace", "-f", "-y", "-o", self._log, "-e", f"trace={CALLS}"]
        self._process = subprocess.Popen(
            [*command, sys.executable, "-c", code, *map(str, args)],
            cwd=self.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        output, _ = self._process.communicate(timeout=600)
        assert self._process.returncode == 0, output

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def list_sockets(self) -> list[str]:
        """Every call that makes or uses one."""
        return [line for line in self._read() if SOCKET.search(line)]

    def list_written(self) -> list[str]:
        """Files that were opened to write or given a name, folders that were made."""
        found = []
        for line in self._read():
            if match := OPENED.search(line):
                folder, name, flags = match.groups()
                if re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)|^, 0", flags) or "creat(" in line:
                    found.append(os.path.join(folder or self.cwd, name))
            elif PLACED.search(line):
                found += [
                    os.path.join(folder or self.cwd, name) for folder, name in NAMED.findall(line)
                ]
        return found

    def _read(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def check(self, *targets: Path) -> None:
        """See that it was quiet: nothing but the targets, and nothing left behind."""
        assert self.list_sockets() == []
        for name in self.list_written():
            assert name == "/dev/null" or self._may_write(Path(name), targets), name
        for folder in (self.home, self.tmp, self.cwd):
            assert list(folder.iterdir()) == []

    def _may_write(self, path: Path, targets: tuple[Path, ...]) -> bool:
        """A target, what is made beside it to become it, or a temporary file: gone at the end."""
        for target in targets:
            around = (target.name, f".{target.name}.")
            if target.parent in path.parents:
                first = path.relative_to(target.parent).parts[0]
                if first == around[0] or first.startswith(around[1]):
                    return True
        return self.tmp in path.parents


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Trace]]:
    """start(code, *args) -> a trace that has begun; skips where processes can't be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(
        ["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"processes can't be traced here: {probe.stderr.strip()[:200]}")
    traces = []

    def begin(code: str, *args: object) -> Trace:
        traces.append(Trace(tmp_path_factory.mktemp("trace"), code, *args))
        return traces[-1]

    yield begin
    for trace in traces:
        trace.kill()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(generator.integers(0, 256, (84, 112, 3), np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


@pytest.fixture(scope="module")
def loaded(start, make_bundle, pictures) -> Trace:
    """A model that has answered and stays loaded; begun before what runs meanwhile."""
    return start(STAY, make_bundle("tiny").bundle, pictures / "0.png")


def test_a_socket_and_a_file_are_seen(start, tmp_path):
    """Or the tests below would pass whatever happens."""
    code = (
        "import os, socket, sys\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        "folder = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.close(os.open('by-folder', os.O_WRONLY | os.O_CREAT, dir_fd=folder))\n"
        "os.system('mkdir made; : > by-child')\n"
        "os.rename('made', sys.argv[1] + '/renamed')\n"
    )
    trace = start(code, tmp_path)
    trace.finish()
    assert any("AF_INET" in line for line in trace.list_sockets())
    written = trace.list_written()
    for path in (tmp_path / "by-folder", trace.cwd / "made", tmp_path / "renamed"):
        assert str(path) in written
    assert str(trace.cwd / "by-child") in written
    with pytest.raises(AssertionError):
        trace.check()


@pytest.mark.parametrize("options", [["--selfcheck"], ["--target", "jetpack-6.2"]])
def test_export_is_quiet(start, loaded, make_bundle, tmp_path, options):
    target = tmp_path / "bundle"
    trace = start(CLI, "export", make_bundle("tiny").checkpoint, target, *options)
    trace.finish()
    trace.check(target)


@pytest.mark.parametrize(
    "args",
    [
        ["run", "BUNDLE", "What is it?", "--image", "PICTURES/0.png", "--max-new-tokens", "2"],
        ["inspect", "BUNDLE"],
        ["bench", "BUNDLE", "--runs", "1", "--image-size", "56x56", "--context", "8"],
        ["plan", "BUNDLE", "--device", "orin-nano-8gb"],
    ],
    ids=lambda args: args[0],
)
def test_commands_that_write_nothing_are_quiet(start, loaded, make_bundle, pictures, args):
    words = {"BUNDLE": str(make_bundle("tiny").bundle), "PICTURES/0.png": str(pictures / "0.png")}
    trace = start(CLI, *(words.get(arg, arg) for arg in args))
    trace.finish()
    trace.check()


@pytest.fixture(scope="module")
def quantized(start, loaded, make_bundle, pictures, tmp_path_factory) -> SimpleNamespace:
    target = tmp_path_factory.mktemp("quantized") / "bundle"
    source = make_bundle("tiny").bundle
    trace = start(CLI, "quantize", source, target, "--recipe", "cpu", "--data", pictures)
    trace.finish()
    return SimpleNamespace(trace=trace, target=target, source=source)


def test_quantize_is_quiet(quantized):
    quantized.trace.check(quantized.target)


def test_check_is_quiet(start, quantized, pictures, tmp_path):
    report = tmp_path / "report"
    args = ("--against", quantized.source, "--data", pictures, "--report", report)
    trace = start(CLI, "check", quantized.target, *args)
    trace.finish()
    trace.check(report)


def test_a_model_that_stays_loaded_is_quiet_for_a_minute(loaded):
    """Last of this file: its minute has passed while the others ran."""
    loaded.finish()
    loaded.check()
