"""What preparing a picture and its positions costs on the host: python scripts/bench_host.py.

One 1080p picture resized for 1,003,520 pixels, and the position ids of a prompt with a clip of
16,384 tokens, each beside what others take for the same. Every round runs all contestants one
after another, so that a noisy minute hits all of them; the table holds medians, and ratios of the
rounds themselves. Beside the time on the wall stands that of all threads together: on a machine
with other work, only the latter says much. `--cores 2` keeps the process to two cores, as the
target devices' budget is.

The rows of transformers and torchvision appear where they are installed; Pillow's is its resize
alone, on one thread. All start from a decoded Pillow picture but the one that says otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from vlmedge.runtime.bundle.manifest import PixelBudget, TokenIds, VisionSpec
from vlmedge.runtime.inputs.bicubic import find_pass_order, resize_bicubic
from vlmedge.runtime.inputs.patches import Grid, make_image_input, normalize_patches
from vlmedge.runtime.inputs.positions import make_position_ids

HEIGHT, WIDTH = 1080, 1920
PIXELS = PixelBudget(
    min_pixels=56 * 56,
    max_pixels=1280 * 28 * 28,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
VISION = VisionSpec(
    depth=32,
    embed_dim=1280,
    num_heads=16,
    patch_size=14,
    temporal_patch_size=2,
    spatial_merge_size=2,
)
TOKENS = TokenIds(151652, 151653, 151655, 151656, (151645,), 151643)
CLIP = Grid(t=16, h=64, w=64)  # 16,384 visual tokens, and short enough for both M-RoPE rules

OURS, OURS_ARRAY = "vlmedge, resize + patches", "vlmedge, the same of an array"
OURS_FLOAT, OURS_RESIZE = "vlmedge, float patches too", "vlmedge, resize alone"
PILLOW, PIL_PROCESSOR = "Pillow, resize alone", "transformers, PIL processor"
TORCHVISION = "transformers, torchvision processor"
OUR_IDS, THEIR_IDS = "vlmedge, position ids", "transformers, get_rope_index"
RATIOS = (
    (OURS, PILLOW),
    (OURS_RESIZE, PILLOW),
    (OURS_ARRAY, PILLOW),
    (OURS, PIL_PROCESSOR),
    (OURS_FLOAT, PIL_PROCESSOR),
    (OURS, TORCHVISION),
    (OUR_IDS, THEIR_IDS),
)


class Time(NamedTuple):
    """Of one call, in milliseconds: on the wall, and of all threads together."""

    wall_ms: float
    cpu_ms: float


def make_picture() -> NDArray[np.uint8]:
    """Shapes and noise in the proportions of a photograph, from a fixed seed."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), dtype=np.uint8)
    smooth = Image.fromarray(shapes).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    noise = rng.integers(-8, 9, (HEIGHT, WIDTH, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def list_image_contestants(picture: NDArray[np.uint8]) -> dict[str, Callable[[], Any]]:
    """Name -> one preparation of the picture."""
    image = Image.fromarray(picture)
    made = make_image_input(picture, PIXELS, VISION)
    height, width = made.grid.h * VISION.patch_size, made.grid.w * VISION.patch_size
    mean, std = PIXELS.image_mean, PIXELS.image_std
    contestants: dict[str, Callable[[], Any]] = {
        PILLOW: lambda: image.resize((width, height), Image.Resampling.BICUBIC),
        OURS_RESIZE: lambda: resize_bicubic(image, height, width),
        OURS: lambda: make_image_input(image, PIXELS, VISION),
        OURS_ARRAY: lambda: make_image_input(picture, PIXELS, VISION),
        OURS_FLOAT: lambda: normalize_patches(
            make_image_input(image, PIXELS, VISION).pixel_values, mean, std
        ),
    }
    package = "transformers.models.qwen2_vl"
    if importlib.util.find_spec("transformers"):
        module = importlib.import_module(f"{package}.image_processing_pil_qwen2_vl")
        processor = module.Qwen2VLImageProcessorPil()
        contestants[PIL_PROCESSOR] = lambda: processor(image, return_tensors="np")
        if not np.array_equal(
            contestants[PIL_PROCESSOR]()["pixel_values"], contestants[OURS_FLOAT]()[0]
        ):
            raise SystemExit("our patches differ from those of transformers' PIL processor")
        if importlib.util.find_spec("torchvision"):
            module = importlib.import_module(f"{package}.image_processing_qwen2_vl")
            fast = module.Qwen2VLImageProcessor()
            contestants[TORCHVISION] = lambda: fast(image, return_tensors="pt")
    return contestants


def list_position_contestants() -> dict[str, Callable[[], Any]]:
    """Name -> the ids of one prompt."""
    num_tokens = CLIP.t * CLIP.h * CLIP.w // 4
    input_ids = np.array([5] * 20 + [TOKENS.video_pad] * num_tokens + [5] * 30)
    contestants: dict[str, Callable[[], Any]] = {
        OUR_IDS: lambda: make_position_ids(input_ids, [], [CLIP], TOKENS, 2, "paper")
    }
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        contestants[THEIR_IDS] = make_rope_index(input_ids)
        if not np.array_equal(contestants[THEIR_IDS]()[0][:, 0].numpy(), contestants[OUR_IDS]()):
            raise SystemExit("our position ids differ from those of transformers")
    return contestants


def make_rope_index(input_ids: NDArray[np.int64]) -> Callable[[], Any]:
    """The function of transformers with no more of a model than it reads."""
    from types import MethodType, SimpleNamespace

    import torch

    modeling = importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    model = SimpleNamespace(config=config)
    kind = modeling.Qwen2VLModel
    model.get_vision_position_ids = MethodType(kind.get_vision_position_ids, model)
    ids = torch.from_numpy(input_ids)[None]
    types = (ids == TOKENS.video_pad).int() * 2
    grids = torch.tensor([CLIP])
    return lambda: kind.get_rope_index(model, ids, types, None, grids)


def measure(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Time]]:
    """Times of each contestant in each round; the first round warms up and is dropped."""
    times: dict[str, list[Time]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            cpu_start, start = time.process_time(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
            if number:
                times[name].append(Time(wall * 1e3, cpu * 1e3))
        if sys.stderr.isatty():
            end = "\n" if number == rounds else ""
            print(f"\rround {number} of {rounds}", end=end, file=sys.stderr, flush=True)
    return times


def make_report(times: Mapping[str, list[Time]], cores: int) -> dict[str, Any]:
    """Medians and ratios, and what they were measured with."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions["pillow"] = PIL.__version__
    for name in ("transformers", "torch", "torchvision"):
        if importlib.util.find_spec(name):
            versions[name] = importlib.import_module(name).__version__
    order = find_pass_order()
    return {
        "picture": f"{WIDTH}x{HEIGHT}",
        "max_pixels": PIXELS.max_pixels,
        "cores": cores,
        "versions": versions,
        "pass_order": order.__name__ if order else None,
        "median_ms": {name: find_median(t.wall_ms for t in all_) for name, all_ in times.items()},
        "best_ms": {name: round(min(all_).wall_ms, 3) for name, all_ in times.items()},
        "cpu_ms": {name: find_median(t.cpu_ms for t in all_) for name, all_ in times.items()},
        "ratios": {
            f"{ours} / {theirs}": find_median(
                a.wall_ms / b.wall_ms for a, b in zip(times[ours], times[theirs], strict=True)
            )
            for ours, theirs in RATIOS
            if ours in times and theirs in times
        },
    }


def find_median(values: Iterable[float]) -> float:
    """To three places."""
    return round(statistics.median(values), 3)


def print_report(report: Mapping[str, Any]) -> None:
    """The table for people."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(f"{report['picture']} for {report['max_pixels']} pixels, {report['cores']} cores")
    print(versions)
    print(f"{'':40}{'median ms':>12}{'best ms':>12}{'CPU ms':>12}")
    for name in report["median_ms"]:
        columns = (report[column][name] for column in ("median_ms", "best_ms", "cpu_ms"))
        print(f"{name:40}" + "".join(f"{value:12.2f}" for value in columns))
    print("median of the ratios in each round")
    for name, ratio in report["ratios"].items():
        print(f"{name:64}{ratio:12.3f}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40, help="default 40")
    parser.add_argument("--cores", type=int, default=2, help="cores to keep to, default 2")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.cores < 1:
        parser.error("--rounds and --cores must be positive")
    return options


def main() -> None:
    """Measure and print."""
    options = parse_args()
    cores = options.cores
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        os.sched_setaffinity(0, allowed)
        cores = len(allowed)
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch").set_num_threads(cores)
    times = measure(list_image_contestants(make_picture()), options.rounds)
    times |= measure(list_position_contestants(), options.rounds)
    report = make_report(times, cores)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)


if __name__ == "__main__":
    main()
