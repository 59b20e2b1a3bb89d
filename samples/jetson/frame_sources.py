"""What --source names -> frames: a camera through OpenCV, a video through PyAV, or a folder.

| source | is read by | |
|---|---|---|
| csi:0 | OpenCV, GStreamer | a camera on the CSI connector, by its number |
| /dev/video0 | OpenCV, V4L2 | a USB camera |
| gst:PIPELINE | OpenCV, GStreamer | any pipeline that ends in an appsink of BGR |
| FILE | PyAV | a video, as slowly as it was recorded |
| FOLDER | Pillow | its pictures by name, --fps of them a second |

PyPI's opencv-python has no GStreamer; JetPack's own OpenCV has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from latest_frame import CameraLostError, OpenSource
from numpy.typing import NDArray

from vlmedge.runtime.inputs.images import read_image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # of pictures in a folder


def find_source(name: str, *, width: int, height: int, fps: float, is_repeated: bool) -> OpenSource:
    """What opens a source.

    Args:
        name: as in the table above.
        width: asked of a camera.
        height: asked of a camera.
        fps: asked of a camera, and the pace of a folder.
        is_repeated: begin a file or a folder again at its end.

    Raises:
        ValueError: there is nothing of that name.
    """
    if name.startswith("csi:"):
        pipeline = make_csi_pipeline(int(name.removeprefix("csi:")), width, height, fps)
        return lambda: read_gstreamer(pipeline)
    if name.startswith("gst:"):
        return lambda: read_gstreamer(name.removeprefix("gst:"))
    if name.startswith("/dev/"):
        return lambda: read_v4l2(name, width, height, fps)
    path = Path(name)
    if path.is_dir():
        return lambda: _repeat(lambda: read_folder(path, fps), is_repeated)
    if path.is_file():
        return lambda: _repeat(lambda: read_video(path), is_repeated)
    raise ValueError(f"source is {name}: no such file or folder, nor csi:N, gst:PIPELINE, /dev/...")


def make_csi_pipeline(sensor: int, width: int, height: int, fps: float) -> str:
    """GStreamer's words for a camera on the CSI connector, through NVIDIA's Argus."""
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM), width={width}, height={height}, framerate={fps:.0f}/1 ! "
        "nvvidconv ! video/x-raw, format=BGRx ! videoconvert ! video/x-raw, format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def read_gstreamer(pipeline: str) -> Iterator[NDArray[np.uint8]]:
    """Frames of a GStreamer pipeline, through OpenCV."""
    cv2 = _import_cv2()
    if not any(
        "GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines()
    ):
        raise ValueError(
            "this OpenCV was built without GStreamer (PyPI's always is): use JetPack's own, "
            "sudo apt install python3-opencv, and a virtual environment with --system-site-packages"
        )
    return _read_capture(cv2, cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), pipeline)


def read_v4l2(device: str, width: int, height: int, fps: float) -> Iterator[NDArray[np.uint8]]:
    """Frames of a USB camera, through OpenCV."""
    cv2 = _import_cv2()
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    for name, value in (
        (cv2.CAP_PROP_FRAME_WIDTH, width),
        (cv2.CAP_PROP_FRAME_HEIGHT, height),
        (cv2.CAP_PROP_FPS, fps),
        (cv2.CAP_PROP_BUFFERSIZE, 1),  # not the frame of half a second ago
    ):
        capture.set(name, value)
    return _read_capture(cv2, capture, device)


def _read_capture(cv2: Any, capture: Any, name: str) -> Iterator[NDArray[np.uint8]]:
    try:
        if not capture.isOpened():
            raise CameraLostError(f"{name} can't be opened")
        while True:
            is_read, pixels = capture.read()
            if not is_read:
                raise CameraLostError(f"{name} gives no more pictures")
            yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def read_video(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames of a video file at the times they were recorded at: as a camera would give them."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ValueError("video files need PyAV: pip install 'vlmedge[video]'") from error
    start = time.monotonic()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            time.sleep(max(0.0, start + float(frame.time or 0.0) - time.monotonic()))
            yield frame.to_ndarray(format="rgb24")


def read_folder(path: Path, fps: float) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a folder by name, one each 1 / fps seconds."""
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no pictures ({' '.join(SUFFIXES)})")
    for file in files:
        yield read_image(file)
        time.sleep(1 / fps)


def _repeat(read: OpenSource, is_repeated: bool) -> Iterator[NDArray[np.uint8]]:
    yield from read()
    while is_repeated:
        yield from read()


def _import_cv2() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ValueError(
            "cameras need OpenCV: sudo apt install python3-opencv, and a virtual environment with "
            "--system-site-packages; or name a video file or a folder as --source"
        ) from error
    return cv2
