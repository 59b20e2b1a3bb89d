"""A camera and a question -> answers, one after the other, about what is there now.

    python camera.py BUNDLE --source csi:0 --question "How many people are there?"

One model stays loaded. A thread of its own captures; the newest frame is answered, those that came
meanwhile are dropped (latest_frame.py), so that an answer is never older than the answering itself.
A camera that is unplugged is opened again until it is back. SIGTERM and Ctrl-C end it at once,
in the middle of an answer too. Under systemd (vlmedge-camera.service) it reports that it is ready
and alive.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from frame_sources import find_source
from latest_frame import Capture, Frame, LatestFrame

from vlmedge.runtime import GenerationOptions, ImageError, Model, VlmedgeError

WAIT_S = 1.0  # for a frame, before looking whether all is well
SILENCE_S = 60.0  # without a sign of the capturing thread: it hangs, systemd may restart us


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Answer a question about a camera, on and on.")
    parser.add_argument("bundle", type=Path, help="folder made by vlmedge export")
    parser.add_argument(
        "--source",
        default="/dev/video0",
        help="csi:N, /dev/videoN, gst:PIPELINE, a video file or a folder (default /dev/video0)",
    )
    parser.add_argument("--question", default="Describe this image in one sentence.")
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="shrink frames above this area")
    parser.add_argument("--size", default="1280x720", metavar="WxH", help="asked of the camera")
    parser.add_argument("--fps", type=float, default=30.0, help="of the camera, or a folder's pace")
    parser.add_argument("--repeat", action="store_true", help="begin a file again at its end")
    parser.add_argument("--answers", type=int, metavar="N", help="end after so many")
    parser.add_argument("--provider", help="tensorrt, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args(argv)
    width, _, height = args.size.partition("x")
    if not (width.isdigit() and height.isdigit() and args.fps > 0):
        parser.error("--size needs WxH as in 1280x720, --fps more than 0")
    args.width, args.height = int(width), int(height)
    return args


def main(argv: list[str] | None = None) -> int:
    """Answer until the source ends or somebody stops it: 0; 1 and a line where it can't go on."""
    args = parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        open_source = find_source(
            args.source,
            width=args.width,
            height=args.height,
            fps=args.fps,
            is_repeated=args.repeat,
        )
        with Model.load(args.bundle, providers=args.provider) as model:
            latest = LatestFrame()
            capture = Capture(open_source, latest, stop, _say)
            capture.start()
            _notify("READY=1")
            num_answers = answer_frames(model, args, capture, latest, stop)
            stop.set()
            capture.join(timeout=2.0)
        if capture.error is not None:
            raise capture.error
    except (OSError, ValueError, VlmedgeError) as error:
        _say(str(error))
        return 1
    _say(f"{num_answers} answers, {latest.num_dropped} frames dropped")
    return 0


def answer_frames(
    model: Any,
    args: argparse.Namespace,
    capture: Capture,
    latest: LatestFrame,
    stop: threading.Event,
) -> int:
    """Answer the newest frame, again and again; returns how many answers there were.

    Args:
        model: a vlmedge.runtime.Model.
        args: of the command line.
        capture: the thread that fills `latest`.
        latest: where the newest frame is.
        stop: ends it, and the answer that is being made.
    """
    options = GenerationOptions(max_new_tokens=args.max_new_tokens)
    num_answers = 0
    while not (stop.is_set() or latest.is_over or num_answers == args.answers):
        frame = latest.take(WAIT_S)
        if time.monotonic() - capture.last_sign < SILENCE_S:
            _notify("WATCHDOG=1")
        if frame is None:
            continue
        start = time.monotonic()
        try:
            answer = model.answer(
                args.question,
                [frame.pixels],
                options=options,
                max_pixels=args.max_pixels,
                cancel=stop,
            )
        except ImageError as error:
            _say(f"frame {frame.number}: {error}")
            continue
        if answer.finish_reason != "cancelled":
            num_answers += 1
            _print_answer(args, frame, answer, start, latest.num_dropped)
    return num_answers


def _print_answer(
    args: argparse.Namespace, frame: Frame, answer: Any, start: float, num_dropped: int
) -> None:
    now = time.monotonic()
    age_s, answer_s = now - frame.time, now - start
    if args.json:
        fields = {
            "frame": frame.number,
            "text": answer.text,
            "age_s": round(age_s, 3),
            "answer_s": round(answer_s, 3),
            "num_dropped": num_dropped,
        }
        print(json.dumps(fields, ensure_ascii=False), flush=True)
        return
    print(
        f"frame {frame.number}, {age_s:.2f} s ago, answered in {answer_s:.2f} s, "
        f"{num_dropped} dropped: {answer.text}",
        flush=True,
    )


def _say(line: str) -> None:
    print(f"camera.py: {line}", file=sys.stderr, flush=True)


def _notify(state: str) -> None:
    """Tell systemd, where it has started us; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # of the abstract namespace
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.sendto(state.encode(), address)


if __name__ == "__main__":
    sys.exit(main())
