"""docs/jetson.md: every command of ours in it exists, with the options it is shown with."""

import re
import shlex
from pathlib import Path

import pytest

from vlmedge.export.engines.script.options import VERSIONS
from vlmedge.export.engines.settings import DEFAULT_MAX_PIXELS
from vlmedge.export.lowering.targets import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def list_commands() -> list[list[str]]:
    """The words of every command in the page's blocks and in its running text."""
    lines = [
        re.split(r"\s#\s", line)[0]
        for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`((?:sudo |vlmedge |VLMEDGE)[^`]*)`", PAGE)
    return [shlex.split(part) for line in lines for part in re.split(r"&&|\|", line)]


OURS = [
    words[index:]
    for words in list_commands()
    for index, word in enumerate(words)
    if word in ("vlmedge", ".venv/bin/vlmedge") and index + 1 < len(words)
]


def test_the_page_has_commands():
    names = {words[1] for words in OURS}
    assert names >= {"export", "quantize", "plan", "build", "run", "bench"}


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_has_the_options_it_is_shown_with(words):
    from vlmedge.runtime.cli.main import find_commands, load_command

    if words[1].startswith("vlmedge:"):  # an image's tag: its entry point is vlmedge
        words = words[1:]
    commands = find_commands()
    assert words[1] in commands
    params = load_command(commands[words[1]]).params
    known = {option for each in params for option in (*each.opts, *each.secondary_opts)}
    used = {word for word in words[2:] if word.startswith("--")}
    assert used <= known, used - known


def test_the_samples_have_the_options_they_are_shown_with(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "samples" / "jetson"))
    from camera import parse_args

    shown = [words for words in list_commands() if "jetson/camera.py" in words]
    assert len(shown) == 3
    for words in shown:
        parse_args(words[words.index("jetson/camera.py") + 1 :])


def test_the_image_is_started_with_options_that_the_camera_has(monkeypatch):
    """What follows the image's tag is the camera's; nothing: what the Dockerfile says."""
    monkeypatch.syspath_prepend(str(ROOT / "samples" / "jetson"))
    from camera import parse_args

    sources = set()
    for words in list_commands():
        if "docker" in words and "run" in words and "--entrypoint" not in words:
            arguments = words[words.index("vlmedge:r36.4") + 1 :]
            sources.add(parse_args(arguments or ["/bundle"]).source)
    assert sources == {"/dev/video0", "csi:0"}


def test_the_page_says_how_large_pictures_are_built_for():
    assert f"at most {DEFAULT_MAX_PIXELS:,} pixels" in PAGE


def test_the_page_says_after_what_silence_the_service_is_restarted(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "samples" / "jetson"))
    from camera import SILENCE_S

    unit = (ROOT / "samples" / "jetson" / "vlmedge-camera.service").read_text(encoding="utf-8")
    (watchdog,) = re.findall(r"^(WatchdogSec=\d+)$", unit, flags=re.MULTILINE)
    text = " ".join(PAGE.split())
    assert f"`{watchdog}`" in text
    assert f"for {SILENCE_S:.0f} s" in text
    assert f"after {SILENCE_S:.0f} s without a sign" in unit
    minutes = (SILENCE_S + int(watchdog.partition("=")[2])) / 60
    assert {4.0: "about four minutes"}[minutes] in text


def test_every_target_of_jetsons_is_in_the_page():
    for name in TARGETS:
        if name.startswith("jetpack"):
            assert f"`{name}`" in PAGE
    shown = set(re.findall(r"--target (\S+?)[`\s,]", PAGE))
    assert shown <= set(TARGETS)


def test_the_page_names_the_versions_of_trtexec_that_were_read():
    assert f"for {', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}" in " ".join(PAGE.split())


def test_the_files_that_the_page_names_are_there():
    for name in ("camera.py", "describe.py", "vlmedge-camera.service", "vlmedge-camera.env"):
        assert name in PAGE
        assert (ROOT / "samples" / "jetson" / name).is_file()
    assert (ROOT / "export" / "engines" / "script" / "options.py").is_file()
