"""Samples for Jetsons: the newest frame is answered, a lost camera comes back, all ends cleanly."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "samples" / "jetson"
PICTURES = ROOT / "samples" / "pictures"
ENTRIES = {
    entry["picture"]: entry
    for entry in json.loads((PICTURES / "questions.json").read_text())
    if "picture" in entry
}
NUMBER = ENTRIES["number-1.png"]


@pytest.fixture(autouse=True)
def jetson(monkeypatch):
    monkeypatch.syspath_prepend(str(JETSON))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The sample checkpoint as a bundle, for a CPU."""
    from vlmedge.export.exporter import export_checkpoint
    from vlmedge.export.graphs.options import ExportOptions

    folder = tmp_path_factory.mktemp("bundles") / "reader"
    export_checkpoint(ROOT / "samples" / "reader", folder, ExportOptions("fp32"))
    return folder


def make_frame(value: int) -> np.ndarray:
    return np.full((2, 3, 3), value, np.uint8)


# latest_frame.py


def test_the_newest_frame_is_taken_and_the_others_are_counted():
    from latest_frame import LatestFrame

    latest = LatestFrame()
    for value in (1, 2, 3):
        latest.put(make_frame(value))
    frame = latest.take(0)
    assert frame is not None
    assert (frame.number, frame.pixels[0, 0, 0]) == (3, 3)
    assert latest.num_dropped == 2


def test_a_frame_is_taken_only_once():
    from latest_frame import LatestFrame

    latest = LatestFrame()
    latest.put(make_frame(1))
    assert latest.take(0) is not None
    assert latest.take(0) is None
    assert latest.num_dropped == 0


def test_who_waits_gets_the_frame_that_comes():
    from latest_frame import LatestFrame

    latest = LatestFrame()
    timer = threading.Timer(0.05, latest.put, [make_frame(7)])
    timer.start()
    frame = latest.take(10)
    assert frame is not None
    assert frame.pixels[0, 0, 0] == 7


def test_after_the_end_the_last_frame_can_still_be_taken():
    from latest_frame import LatestFrame

    latest = LatestFrame()
    latest.put(make_frame(1))
    latest.close()
    assert not latest.is_over
    assert latest.take(10) is not None
    assert latest.is_over
    start = time.monotonic()
    assert latest.take(10) is None
    assert time.monotonic() - start < 5, "it waits for what can't come"


def capture_from(open_source, **parts):
    from latest_frame import Capture, LatestFrame

    said = []
    stop = threading.Event()
    latest = LatestFrame()
    return Capture(open_source, latest, stop, said.append, **parts), latest, stop, said


def test_a_lost_camera_is_opened_again_with_growing_pauses(monkeypatch):
    from latest_frame import CameraLostError

    attempts, pauses = [], []

    def open_source():
        attempts.append(None)
        if len(attempts) == 4:
            yield make_frame(4)
        elif len(attempts) == 6:
            yield make_frame(6)
            return  # a file's end
        raise CameraLostError(f"attempt {len(attempts)}")

    capture, latest, stop, said = capture_from(open_source)
    monkeypatch.setattr(stop, "wait", pauses.append)
    capture.run()
    assert len(attempts) == 6
    assert pauses == [1, 2, 4, 1, 2], "a frame puts the pause back"
    assert "attempt 1; next attempt in 1 s" in said[0]
    frame = latest.take(0)
    assert frame is not None
    assert frame.pixels[0, 0, 0] == 6
    assert capture.error is None


def test_pauses_end_at_half_a_minute(monkeypatch):
    from latest_frame import CameraLostError

    pauses = []

    def open_source():
        if len(pauses) == 8:
            return iter(())
        raise CameraLostError("gone")

    capture, _, stop, _ = capture_from(open_source)
    monkeypatch.setattr(stop, "wait", pauses.append)
    capture.run()
    assert pauses[-3:] == [30, 30, 30]


def test_another_error_of_a_source_ends_the_capture_and_is_kept():
    def open_source():
        yield make_frame(1)
        raise ValueError("no such pixel format")

    capture, latest, _, _ = capture_from(open_source)
    capture.run()
    assert str(capture.error) == "no such pixel format"
    latest.take(0)
    assert latest.is_over


def test_a_stopped_capture_puts_no_more_frames():
    def open_source():
        for value in range(100):
            if value == 3:
                stop.set()
            yield make_frame(value)

    capture, latest, stop, _ = capture_from(open_source)
    capture.run()
    frame = latest.take(0)
    assert frame is not None
    assert frame.number == 3


# camera.py: the loop


class SlowModel:
    """Its answers take until the test lets them; it reads the value of a frame's pixels."""

    def __init__(self):
        self.asked = queue.Queue()
        self.release = queue.Queue()

    def answer(self, question, images, *, options, max_pixels, cancel):
        self.asked.put(int(images[0][0, 0, 0]))
        self.release.get(timeout=20)
        reason = "cancelled" if cancel.is_set() else "stop"
        return types.SimpleNamespace(text=f"saw {images[0][0, 0, 0]}", finish_reason=reason)


@pytest.fixture
def loop(capsys, monkeypatch):
    """The answering loop in a thread, on a camera that gives a frame when the test says so."""
    from camera import answer_frames, parse_args
    from latest_frame import Capture, LatestFrame

    class Loop:
        def __init__(self):
            self.model, self.latest, self.stop = SlowModel(), LatestFrame(), threading.Event()
            self.capture = Capture(lambda: iter(()), self.latest, self.stop, print)
            self.args = parse_args(["bundle", "--json"])
            self.results = []
            self.thread = threading.Thread(target=self.run)

        def run(self):
            self.results.append(
                answer_frames(self.model, self.args, self.capture, self.latest, self.stop)
            )

        def read_lines(self):
            return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    monkeypatch.setattr("camera.WAIT_S", 0.05)
    loop = Loop()
    loop.thread.start()
    yield loop
    loop.stop.set()
    loop.model.release.put(None)
    loop.thread.join(timeout=20)


def test_a_slow_model_gets_the_newest_frame_not_the_next(loop):
    loop.latest.put(make_frame(1))
    assert loop.model.asked.get(timeout=10) == 1
    for value in (2, 3, 4, 5):  # while it answers
        loop.latest.put(make_frame(value))
    loop.model.release.put(None)
    assert loop.model.asked.get(timeout=10) == 5
    loop.latest.close()
    loop.model.release.put(None)
    loop.thread.join(timeout=10)
    assert loop.results == [2]
    first, second = loop.read_lines()
    assert (first["frame"], first["text"]) == (1, "saw 1")
    assert (second["frame"], second["text"], second["num_dropped"]) == (5, "saw 5", 3)
    assert 0 <= second["answer_s"] <= second["age_s"]


def test_an_answer_that_was_cut_off_is_not_printed(loop):
    loop.latest.put(make_frame(1))
    loop.model.asked.get(timeout=10)
    loop.stop.set()
    loop.model.release.put(None)
    loop.thread.join(timeout=10)
    assert loop.results == [0]
    assert loop.read_lines() == []


def test_systemd_is_told_while_all_is_well_and_no_more_when_the_camera_hangs(
    loop, tmp_path, monkeypatch
):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(path)
        unix.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert unix.recv(64) == b"WATCHDOG=1"
        loop.capture.last_sign -= 3600  # a read that never comes back
        time.sleep(0.2)  # what is on its way still arrives
        unix.setblocking(False)
        while True:
            try:
                unix.recv(64)
            except BlockingIOError:
                break
        time.sleep(0.3)
        with pytest.raises(BlockingIOError):
            unix.recv(64)


# camera.py: the program


def run_camera(*arguments: object, **options):
    return subprocess.Popen(
        [sys.executable, str(JETSON / "camera.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture
def frames(tmp_path):
    """A folder of one picture with a number, many times."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").symlink_to(PICTURES / NUMBER["picture"])
    return folder


def test_it_reads_a_folder_to_its_end(reader, frames):
    process = run_camera(
        reader, "--source", frames, "--fps", 4, "--question", NUMBER["question"], "--json"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines
    assert {line["text"] for line in lines} == {NUMBER["answer"]}
    assert re.search(rf"{len(lines)} answers, \d+ frames dropped", err)
    assert len(lines) + lines[-1]["num_dropped"] == 4, "a frame is answered or dropped"


def test_a_camera_much_faster_than_the_model_does_not_make_answers_late(reader, frames):
    """500 frames a second: every answer is of a frame that came after the answer before."""
    process = run_camera(
        reader, "--source", frames, "--fps", 500, "--repeat", "--answers", 5,
        "--question", NUMBER["question"], "--json",
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 5
    assert lines[-1]["num_dropped"] > 20
    for line in lines[1:]:
        waited = line["age_s"] - line["answer_s"]
        assert waited < 0.5, "it waited longer than frames are apart"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number, reader, frames):
    process = run_camera(
        reader, "--source", frames, "--repeat", "--question", NUMBER["question"], "--json"
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["text"] == NUMBER["answer"]
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "answers, " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "no such file or folder"),
        (["--source", "csi:0"], "cameras need OpenCV"),
        (["--source", "."], "holds no pictures"),
    ],
)
def test_a_source_that_can_not_be_used_is_told_in_one_line(arguments, message, reader, tmp_path):
    process = run_camera(reader, *arguments, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_wrong_option_exits_with_2(tmp_path):
    process = run_camera(tmp_path, "--size", "large")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "1280x720" in err


def test_a_bundle_that_is_none_is_told_in_one_line(tmp_path, frames):
    process = run_camera(tmp_path, "--source", frames)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "manifest.json" in err
    assert len(err.strip().splitlines()) == 1


# describe.py


def test_it_describes_one_picture(reader):
    done = subprocess.run(
        [sys.executable, JETSON / "describe.py", reader, PICTURES / NUMBER["picture"],
         NUMBER["question"]],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{NUMBER['answer']}\n"
    assert re.search(r"picture [\d.]+ s \(\d+ tokens\)", done.stderr)


def test_a_picture_that_is_none_is_told_in_one_line(reader):
    done = subprocess.run(
        [sys.executable, JETSON / "describe.py", reader, ROOT / "README.md"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("describe.py: ")
    assert len(done.stderr.strip().splitlines()) == 1


# frame_sources.py


class FakeCv2:
    """As much of OpenCV as the samples use: three frames, then nothing."""

    CAP_GSTREAMER, CAP_V4L2, COLOR_BGR2RGB = 1800, 200, 4
    CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT, CAP_PROP_FPS, CAP_PROP_BUFFERSIZE = 3, 4, 5, 38

    def __init__(self, gstreamer="YES (1.20.3)", is_open=True):
        self.gstreamer, self.is_open = gstreamer, is_open
        self.opened, self.properties, self.num_released = [], {}, 0

    def VideoCapture(self, name, api):  # noqa: N802
        self.opened.append((name, api))
        left = iter([np.array([[[3, 2, 1]]], np.uint8)] * 3)

        def read():
            pixels = next(left, None)
            return pixels is not None, pixels

        def release():
            self.num_released += 1

        return types.SimpleNamespace(
            isOpened=lambda: self.is_open,
            read=read,
            release=release,
            set=self.properties.setdefault,
        )

    def getBuildInformation(self):  # noqa: N802
        return f"  Video I/O:\n    GStreamer:                   {self.gstreamer}\n"

    def cvtColor(self, pixels, code):  # noqa: N802
        assert code == self.COLOR_BGR2RGB
        return pixels[..., ::-1]


@pytest.fixture
def cv2(monkeypatch):
    fake = FakeCv2()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    return fake


def open_named(name: str, **options):
    from frame_sources import find_source

    defaults = {"width": 640, "height": 480, "fps": 15.0, "is_repeated": False}
    return find_source(name, **{**defaults, **options})


def read_until_lost(source):
    from latest_frame import CameraLostError

    frames = []
    try:
        for pixels in source():
            frames.append(pixels.tolist())
    except CameraLostError as lost:
        return frames, str(lost)
    raise AssertionError("a camera has no end")


def test_a_csi_camera_is_a_gstreamer_pipeline_that_keeps_no_old_frames(cv2):
    frames, lost = read_until_lost(open_named("csi:1"))
    assert frames == [[[[1, 2, 3]]]] * 3, "OpenCV gives BGR, the model wants RGB"
    ((pipeline, api),) = cv2.opened
    assert api == cv2.CAP_GSTREAMER
    assert "nvarguscamerasrc sensor-id=1 !" in pipeline
    assert "width=640, height=480, framerate=15/1" in pipeline
    assert pipeline.endswith("appsink drop=true max-buffers=1 sync=false")
    assert "no more pictures" in lost
    assert cv2.num_released == 1


def test_a_usb_camera_is_asked_for_size_and_no_queue(cv2):
    frames, _ = read_until_lost(open_named("/dev/video2"))
    assert len(frames) == 3
    assert cv2.opened == [("/dev/video2", cv2.CAP_V4L2)]
    assert cv2.properties == {3: 640, 4: 480, 5: 15.0, 38: 1}


def test_a_camera_that_can_not_be_opened_is_lost_and_let_go(cv2):
    cv2.is_open = False
    frames, lost = read_until_lost(open_named("/dev/video0"))
    assert frames == []
    assert "can't be opened" in lost
    assert cv2.num_released == 1


def test_any_pipeline_goes_through_as_it_is(cv2):
    read_until_lost(open_named("gst:videotestsrc ! appsink"))
    assert cv2.opened == [("videotestsrc ! appsink", cv2.CAP_GSTREAMER)]


def test_an_opencv_without_gstreamer_is_told_not_retried(cv2):
    cv2.gstreamer = "NO"
    with pytest.raises(ValueError, match="without GStreamer"):
        open_named("csi:0")()


def test_a_video_is_read_as_slowly_as_it_was_recorded(tmp_path):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in (0, 80, 160, 240):
            pixels = np.full((48, 64, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    start = time.monotonic()
    frames = [(time.monotonic() - start, pixels) for pixels in open_named(str(path))()]
    assert [round(float(pixels.mean()) / 80) for _, pixels in frames] == [0, 1, 2, 3]
    assert {pixels.shape for _, pixels in frames} == {(48, 64, 3)}
    assert all(came >= index / 10 for index, (came, _) in enumerate(frames))


def test_a_folder_is_read_by_name_and_again_where_asked(tmp_path):
    for index, name in enumerate(("b.png", "a.png", "c.txt")):
        if name.endswith("png"):
            Image.new("RGB", (2, 2), (index, 0, 0)).save(tmp_path / name)
        else:
            (tmp_path / name).touch()
    frames = [int(pixels[0, 0, 0]) for pixels in open_named(str(tmp_path), fps=1000)()]
    assert frames == [1, 0]
    repeated = open_named(str(tmp_path), fps=1000, is_repeated=True)()
    assert [int(next(repeated)[0, 0, 0]) for _ in range(5)] == [1, 0, 1, 0, 1]
