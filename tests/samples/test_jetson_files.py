"""The unit and the Dockerfile of samples/jetson: linted, and true to what is in the tree."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "samples" / "jetson"
UNIT = JETSON / "vlmedge-camera.service"
DOCKERFILE = JETSON / "Dockerfile"


def find_tool(name: str) -> str:
    """A program of this environment or of the machine; skips without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def unit():
    """The unit's sections; systemd's files are configparser's but for repeated keys."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(UNIT)
    return parser


@pytest.fixture
def environment():
    """What vlmedge-camera.env sets."""
    lines = (JETSON / "vlmedge-camera.env").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: " ".join(shlex.split(value)) for name, _, value in pairs}


def test_systemd_finds_nothing_in_the_unit(tmp_path):
    """Its program is in /opt on a board: here this Python stands for it."""
    tool = find_tool("systemd-analyze")
    text = UNIT.read_text().replace("/opt/vlmedge/.venv/bin/python", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        [tool, "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr, done.stderr


def test_the_unit_calls_the_camera_with_options_it_has(unit, environment, monkeypatch):
    monkeypatch.syspath_prepend(str(JETSON))
    from camera import parse_args

    python, script, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(python).is_absolute()
    assert (ROOT / script).is_file()
    filled = [re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], each) for each in arguments]
    args = parse_args(filled)
    assert str(args.bundle) == environment["BUNDLE"]
    assert args.source == environment["SOURCE"]
    assert args.question == environment["QUESTION"]
    assert "?" in args.question


def test_whatever_the_environment_file_says_stays_one_argument(unit, hostile, monkeypatch):
    """systemd puts ${NAME} in as it is and expands nothing inside it; $NAME it would split."""
    monkeypatch.syspath_prepend(str(JETSON))
    from camera import parse_args

    command = unit["Service"]["ExecStart"]
    assert not re.search(r"\$(?!\{\w+\})", command)
    _, _, *arguments = shlex.split(command)
    filled = [re.sub(r"\$\{\w+\}", lambda _: hostile, each) for each in arguments]
    args = parse_args(filled)
    assert (str(args.bundle), args.source, args.question) == (hostile, hostile, hostile)


def test_the_unit_gives_the_first_answer_time_and_the_last_one_a_limit(unit):
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 120
    assert service["KillSignal"] == "SIGTERM"
    assert service["Restart"] == "on-failure"


def test_the_unit_sees_the_socket_of_the_camera_daemon(unit):
    """It lies in the system's temporary folder; strict protection would make that read-only."""
    service = unit["Service"]
    assert "nvargus-daemon.service" in unit["Unit"]["After"]
    assert service.get("PrivateTmp", "no") == "no"
    assert service["ProtectSystem"] != "strict" or "%T" in service["ReadWritePaths"].split()


def test_hadolint_finds_nothing_in_the_dockerfile():
    tool = find_tool("hadolint")
    done = subprocess.run([tool, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def list_instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined, comments left out."""
    text = "\n".join(
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_dockerfile_keeps_the_rules_without_a_linter_too():
    instructions = list_instructions()
    names = [name for name, _ in instructions]
    assert names[:2] == ["ARG", "FROM"]
    assert re.fullmatch(r"BASE=\S+:\S+", instructions[0][1]), "an image without a tag"
    assert not {"ADD", "MAINTAINER"} & set(names)
    runs = [text for name, text in instructions if name == "RUN"]
    for text in runs:
        if "apt-get install" in text:
            assert "apt-get update" in text
            assert "--no-install-recommends" in text
            assert "rm -rf /var/lib/apt/lists/*" in text
        if "pip install" in text:
            assert "--no-cache-dir" in text
        assert "sudo" not in text
    assert dict(instructions)["USER"] not in ("root", "0")
    for name in ("ENTRYPOINT", "CMD"):
        assert dict(instructions)[name].startswith("["), "a shell would swallow SIGTERM"


def test_the_image_has_the_elements_of_the_csi_pipeline():
    """videoconvert and appsink; python3-opencv depends on GStreamer's library only."""
    (packages,) = [text for name, text in list_instructions() if "apt-get install" in text]
    assert "gstreamer1.0-plugins-base" in packages.split()


def test_everything_the_dockerfile_copies_is_there_and_not_ignored():
    ignored = (JETSON / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    for name, text in list_instructions():
        if name == "COPY":
            for source in text.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_the_dockerfile_starts_the_camera_with_options_it_has(monkeypatch):
    monkeypatch.syspath_prepend(str(JETSON))
    from camera import parse_args

    instructions = dict(list_instructions())
    _, script = eval(instructions["ENTRYPOINT"])
    assert (ROOT / script).is_file()
    assert parse_args(eval(instructions["CMD"])).source == "/dev/video0"
