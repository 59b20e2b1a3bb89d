"""A pipe, a device, a socket or a folder where a file belongs is named, never waited for."""

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from vlmedge.runtime.files.regular_file import open_regular, read_regular, read_regular_text
from vlmedge.runtime.inputs import images

KINDS = {"pipe": "a pipe", "device": "a device", "socket": "a socket", "directory": "a directory"}
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture
def make(tmp_path):
    """make(kind, path): put such a thing at a path."""
    sockets = []

    def put(kind: str, path: Path) -> Path:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            here = os.open(path.parent, os.O_RDONLY)
            try:  # a socket's whole path may have about 100 bytes only
                sockets[-1].bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)
        else:
            path.mkdir()
        return path

    yield put
    for each in sockets:
        each.close()


def call(function, *args):
    """The error that a call raises; a call that waits for something fails the test."""
    outcome = []

    def run():
        try:
            function(*args)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert outcome, "it waits"
    return outcome[0]


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [open_regular, read_regular, read_regular_text])
def test_what_is_no_regular_file_is_named_with_its_path(make, tmp_path, kind, read):
    path = make(kind, tmp_path / "thing")
    error = call(read, path)
    assert isinstance(error, OSError)
    assert error.filename == str(path)
    assert f"it is {KINDS[kind]}, a regular file is needed" in error.strerror
    assert ("write it to a file" in error.strerror) == (kind == "pipe")


def test_a_device_is_not_even_opened(monkeypatch):
    """Opening one may act: a tape is wound back, a watchdog starts."""
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert isinstance(call(open_regular, "/dev/zero"), OSError)


def test_a_pipe_that_takes_the_place_of_a_file_meanwhile_is_not_waited_for(
    make, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    status = os.stat(path)
    make("pipe", path)
    monkeypatch.setattr(os, "stat", lambda _: status)
    assert "a pipe" in str(call(open_regular, path))


def test_regular_files_and_links_to_them_are_read(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes("a\r\nü".encode())
    link.symlink_to(path)
    assert read_regular(link) == path.read_bytes()
    assert read_regular_text(str(link)) == "a\nü"
    with open_regular(path) as file:
        assert os.get_inheritable(file.fileno()) is False
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    with pytest.raises(ValueError, match="null"):
        open_regular("a\0b")


def read_picture(path):
    from vlmedge.runtime.inputs.images import read_image

    read_image(path)


def ask_about(path):
    from vlmedge.runtime.inputs.messages import read_messages
    from vlmedge.runtime.inputs.video import Frames

    read_messages([{"role": "user", "content": [{"type": "image", "image": str(path)}]}])
    Frames([str(path)])[0]


def read_lines(path):
    from vlmedge.quant.data.jsonl import read_jsonl

    read_jsonl(path)


def read_list(path):
    from vlmedge.quant.data.jsonl import read_json_list

    read_json_list(path)


def settle_picture(path):
    from vlmedge.quant.data.examples import Example
    from vlmedge.quant.data.pictures import settle
    from vlmedge.quant.data.prompts import make_messages

    settle([Example("a", make_messages("?", [str(path)]))], ["here"], skip_bad=False)


def read_gate(path):
    from vlmedge.quant.gate.gate import read_gate

    read_gate(path)


def read_sweep(path):
    from vlmedge.quant.sweep.plan import read_sweep

    read_sweep(path)


def read_calibration(path):
    from vlmedge.quant.quantize.calibration import read_calibration

    read_calibration(path, "model")


def read_report(path):
    from vlmedge.quant.report.result_json import read_result

    read_result(path)


def read_table(path):
    from vlmedge.quant.data.layouts import LAYOUTS
    from vlmedge.quant.data.parquet import read_parquet

    read_parquet("docvqa", LAYOUTS["docvqa"], [path])


def read_clip(path):
    from vlmedge.quant.harness.requests import read_clip

    read_clip(path, 2)


def read_weights(path):
    from vlmedge.export.checkpoint.weights.safetensors_header import read_header

    read_header(path)


def read_config(path):
    from vlmedge.export.checkpoint.files.json_file import read_json

    read_json(path)


def read_graph(path):
    from vlmedge.export.planning.onnx_header import read_initializers

    read_initializers(path)


READERS = (
    read_picture,
    ask_about,
    read_lines,
    read_list,
    settle_picture,
    read_gate,
    read_sweep,
    read_calibration,
    read_report,
    read_table,
    read_clip,
    read_weights,
    read_config,
    read_graph,
)


@needs_pipes
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_reader_of_files_that_users_name_says_what_it_found(make, tmp_path, read, kind):
    error = call(read, make(kind, tmp_path / "thing.png"))
    assert isinstance(error, (ValueError, OSError))
    assert KINDS[kind] in str(error)
    assert "thing.png" in str(error)


BUNDLE_FILES = (
    "manifest.json",
    "tokenizer.json",
    "chat_template.jinja",
    "decoder.onnx",
    "decoder.onnx.data",
    "embedding.bin",
)


@needs_pipes
@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_bundle_with_a_pipe_in_it_is_refused(make, make_bundle, tmp_path, name):
    from vlmedge.runtime import BundleError, Model

    bundle = Path(shutil.copytree(make_bundle("tiny").bundle, tmp_path / "bundle"))
    make("pipe", bundle / name)
    error = call(Model.load, bundle)
    assert isinstance(error, BundleError)
    assert name in str(error)
    assert "a pipe" in str(error)


@needs_pipes
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "preprocessor_config.json",
        "chat_template.json",
    ],
)
def test_a_checkpoint_with_a_pipe_in_it_is_refused(make, make_bundle, tmp_path, name):
    from vlmedge.export.exporter import export_checkpoint

    checkpoint = Path(shutil.copytree(make_bundle("tiny").checkpoint, tmp_path / "checkpoint"))
    assert (checkpoint / name).exists()
    make("pipe", checkpoint / name)
    error = call(export_checkpoint, checkpoint, tmp_path / "bundle")
    assert isinstance(error, (ValueError, OSError))
    assert name in str(error)
    assert not (tmp_path / "bundle").exists()


@needs_pipes
def test_commands_name_it_in_one_line(make, make_bundle, tmp_path, capsys):
    from vlmedge.runtime.cli import main as cli

    pipe = str(make("pipe", tmp_path / "pipe"))
    bundle = str(make_bundle("tiny").bundle)
    out = str(tmp_path / "out")
    pictures = str(Path(__file__).parents[3] / "samples" / "pictures")
    for args in (
        ["run", bundle, "hi", "--image", pipe],
        ["run", bundle, "hi", "--frames", pipe],
        ["quantize", bundle, out, "--recipe", pipe],
        ["quantize", bundle, out, "--recipe", "orin", "--calibration", pipe],
        ["check", bundle, "--against", bundle, "--data", pictures, "--gate", pipe],
        ["run", pipe, "hi"],
        ["export", pipe, out],
    ):
        done = []
        call(lambda args=args, done=done: done.append(cli.main(args)))
        printed = capsys.readouterr()
        assert done[0] in (1, 2), args
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert "pipe" in printed.err


@needs_pipes
def test_a_picture_that_becomes_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    os.mkfifo(path)
    monkeypatch.setattr(images, "check_regular", lambda path: None)  # it was a file at first
    assert "a pipe" in str(call(images.read_image, str(path)))
