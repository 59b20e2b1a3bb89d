"""`vlmedge` in a terminal: a process on a pty, and an emulator that shows what a person sees."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyte
import pytest
from PIL import Image

LINES = 40
# What a shell in a terminal window sets; a pipe's or a CI's settings would change what is drawn
UNSET = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "VLMEDGE_DEBUG", "CI")
LIMIT_S = 240  # a hang, not a measurement
PROGRAM = Path(sys.executable).with_name("vlmedge")


class Terminal:
    """A program on a pty of its own: its output drawn as it comes, keys go to it.

    Attributes:
        screen: what an emulator of the terminal's width shows, with all that scrolled away.
        frames: what the screen showed from one redrawing to the next, one string each.
        out: what went to stdout, where that is a pipe.
    """

    def __init__(
        self,
        words: Sequence[object],
        *,
        columns: int = 80,
        is_told: bool = True,
        piped: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.columns = columns
        self.screen = pyte.HistoryScreen(columns, LINES, history=100_000, ratio=1)
        self._stream = pyte.ByteStream(self.screen)
        # Of the same output where nothing is wrapped: lines that a terminal would break show here
        self._wide = pyte.HistoryScreen(1000, LINES, history=100_000, ratio=1)
        self._wide_stream = pyte.ByteStream(self._wide)
        self.raw = b""
        self.out = b""
        self.frames: list[str] = []
        self._master, slave = pty.openpty()
        if is_told:  # else both are 0, as where `script` runs in a pipe
            size = struct.pack("HHHH", LINES, columns, 0, 0)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        clean = {name: value for name, value in os.environ.items() if name not in UNSET}
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdin=slave,
            stdout=subprocess.PIPE if piped else slave,
            stderr=slave,
            env=clean | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | dict(env or {}),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_take_terminal,  # so that ctrl-C is a key, and not only a signal
        )
        os.close(slave)
        self._pipe = self._process.stdout

    @property
    def text(self) -> str:
        """Everything on the screen and above it, lines without their trailing blanks."""
        return _read_screen(self.screen)

    @property
    def lines(self) -> list[str]:
        """`text` in lines, without empty ones at the end."""
        return self.text.splitlines()

    @property
    def too_long(self) -> list[str]:
        """Lines that the terminal has to break, wherever that is."""
        return [line for line in _read_screen(self._wide).splitlines() if len(line) > self.columns]

    def saw(self, text: str) -> bool:
        """Whether any frame holds it."""
        return any(text in frame for frame in self.frames)

    def press(self, keys: str) -> None:
        """Type; "\\x03" is ctrl-C."""
        os.write(self._master, keys.encode())

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the program alone."""
        self._process.send_signal(number)

    def wait_for(self, pattern: str) -> str:
        """Read until the screen holds a match; the frame that does.

        Raises:
            AssertionError: the program ended before.
        """
        seen = 0
        while True:
            for frame in self.frames[seen:]:
                if re.search(pattern, frame):
                    return frame
            seen = len(self.frames)
            assert self._read(), f"no {pattern!r} on the screen:\n{self.text}"

    def hang_up(self) -> None:
        """Close the terminal: the kernel tells the program by SIGHUP."""
        os.close(self._master)
        self._master = -1

    def wait(self) -> int:
        """The exit code of a program whose terminal is closed."""
        return self._process.wait(LIMIT_S)

    def finish(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self._process.wait(LIMIT_S)

    def close(self) -> None:
        """End the program if it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._master >= 0:
            os.close(self._master)
        if self._pipe is not None:
            self._pipe.close()

    def _read(self) -> bool:
        """Draw the next piece of output; False at its end."""
        sources: list[int] = [self._master]
        if self._pipe is not None and not self._pipe.closed:
            sources.append(self._pipe.fileno())
        ready, _, _ = select.select(sources, [], [], LIMIT_S)
        assert ready, f"nothing happens:\n{self.text}"
        for source in ready:
            try:
                piece = os.read(source, 1 << 16)
            except OSError:  # Linux says EIO where nobody has the terminal open any more
                piece = b""
            if source != self._master:
                self.out += piece
                if not piece and self._pipe is not None:
                    self._pipe.close()
            elif piece:
                self._draw(piece)
            elif len(sources) == 1:
                return False
        return True

    def _draw(self, output: bytes) -> None:
        """Keep a frame wherever a line is about to be drawn anew: one read may hold several."""
        self.raw += output
        self._wide_stream.feed(output)
        for piece in re.split(rb"(?=\r(?!\n))", output):
            self._stream.feed(piece)
            frame = "\n".join(line.rstrip() for line in self.screen.display).rstrip()
            if not self.frames or frame != self.frames[-1]:
                self.frames.append(frame)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A shell ignores ctrl-C for what it runs in the background, and its children inherit that
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _read_screen(screen: pyte.HistoryScreen) -> str:
    above = [
        "".join(line[column].data for column in range(screen.columns))
        for line in screen.history.top
    ]
    return "\n".join(line.rstrip() for line in [*above, *screen.display]).rstrip()


RunInTerminal = Callable[..., Terminal]


@pytest.fixture
def open_terminal():
    """open_terminal(*args, columns=80, piped=False, ...) -> `vlmedge *args`, still running."""
    opened: list[Terminal] = []

    def start(*args: object, program: Sequence[object] = (PROGRAM,), **options) -> Terminal:
        opened.append(Terminal([*program, *args], **options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture
def run_in_terminal(open_terminal) -> RunInTerminal:
    """run_in_terminal(*args, code=0, ...): to its end, with what holds for every command.

    No traceback, no error of Python's own, the cursor visible, the bar gone.
    """

    def run(*args: object, code: int = 0, **options) -> Terminal:
        terminal = open_terminal(*args, **options)
        ended = terminal.finish()
        assert ended == code, terminal.text
        assert "Traceback" not in terminal.text
        assert not re.search(r"\w+Error\b", terminal.text), terminal.text
        assert not terminal.screen.cursor.hidden
        assert "━" not in terminal.text
        return terminal

    return run


# A long name of a kind that people give, to be told whole at 80 columns
CANDIDATE = "qwen2-vl-tiny-receipts-int8-vision-int4-decoder"
RECIPE = """
name = "receipts-int8-int4"
[vision]
format = "int8"
[decoder]
format = "int4-weight"
block_size = 32
"""
SWEEP = """
sources = ["{float}"]
recipes = ["recipe.toml"]
bundles = ["{bundle}"]
data.source = "data/data.jsonl"
calibration.source = "calibration"
check.levels = ["embeddings", "logits", "texts", "tasks"]
check.max_new_tokens = 2
check.gate = "loose.toml"
"""


@pytest.fixture(scope="session")
def desk(make_bundle, tmp_path_factory) -> SimpleNamespace:
    """What every command is called with: checkpoint, bundles, data, a recipe, gates, a sweep."""
    from vlmedge.quant.data.open_data import open_data
    from vlmedge.quant.quantize.quantize import quantize_bundle
    from vlmedge.quant.recipe.toml import open_recipe

    folder = tmp_path_factory.mktemp("desk")
    (folder / "data").mkdir()
    (folder / "calibration").mkdir()
    levels = np.random.default_rng(9).integers(0, 256, (56, 84, 3), np.uint8)
    Image.fromarray(levels).save(folder / "calibration" / "slope.png")
    rows = []
    for index, size in enumerate(((84, 56), (56, 112))):
        levels = np.random.default_rng(index).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(levels).save(folder / "data" / f"{index}.png")
        rows.append(
            {"id": f"receipts/{index:04d}", "image": f"{index}.png", "question": "What is it?"}
            | {"answer": "a receipt", "task": "receipts"}
        )
    data = folder / "data" / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    made = make_bundle("tiny")
    bundle = folder / CANDIDATE
    examples = open_data(str(data))
    quantize_bundle(made.bundle, bundle, open_recipe(str(recipe)), examples, num_threads=1)
    loose, strict = folder / "loose.toml", folder / "strict.toml"
    loose.write_text("image_embeds.cosine_min = 0.5\n", encoding="utf-8")
    strict.write_text(
        "image_embeds.cosine_min = 0.5\nlayers.own_sqnr_db_min = 60\n", encoding="utf-8"
    )
    sweep = folder / "sweep.toml"
    sweep.write_text(SWEEP.format(float=made.bundle, bundle=bundle), encoding="utf-8")
    return SimpleNamespace(
        folder=folder,
        checkpoint=made.checkpoint,
        float=made.bundle,
        bundle=bundle,
        data=data,
        picture=folder / "data" / "0.png",
        recipe=recipe,
        loose=loose,
        strict=strict,
        sweep=sweep,
    )
