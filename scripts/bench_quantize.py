"""Full-size quantization: time, peak memory, size, and how far the ViT is from float.

    python scripts/make_checkpoint.py CK --size 2b
    vlmedge export CK FLOAT
    python scripts/bench_quantize.py FLOAT OUT --recipe orin

Quantizes in a process of its own with pictures that scikit-image ships, then compares the image
embeddings of both bundles on other pictures of 448x448 and 1092x1092. Weights are random: the
error is that of rounding alone, and tells nothing about answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as photographs

from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.patches import make_image_input

# Of many kinds, dark ones too: what the ranges were found on is what they hold for.
CALIBRATION = {
    "astronaut": (448, 448),
    "brick": (224, 224),
    "camera": (448, 448),
    "chelsea": (616, 448),
    "clock": (280, 196),
    "coffee": (448, 336),
    "coins": (336, 280),
    "colorwheel": (336, 336),
    "gravel": (224, 224),
    "horse": (336, 280),
    "logo": (224, 224),
    "microaneurysms": (280, 280),
    "moon": (336, 336),
    "page": (560, 280),
    "retina": (560, 560),
    "rocket": (224, 224),
    "shepp_logan_phantom": (280, 280),
    "text": (448, 168),
}
HELD_OUT = {
    "hubble_deep_field": (448, 448),
    "immunohistochemistry": (448, 448),
    "stereo_motorcycle": (1092, 1092),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("float_bundle", type=Path, metavar="FLOAT")
    parser.add_argument("bundle", type=Path, metavar="OUT")
    parser.add_argument("--recipe", default="orin")
    parser.add_argument("--no-quantize", action="store_true", help="OUT is there already")
    parser.add_argument("--no-compare", action="store_true", help="time, memory and size only")
    return parser.parse_args(argv)


def open_photograph(name: str, size: tuple[int, int]) -> Image.Image:
    """One of scikit-image's, resized."""
    levels = getattr(photographs, name)()
    if isinstance(levels, tuple):  # a stereo pair and its disparity
        levels = levels[0]
    if levels.dtype != np.uint8:  # drawings: truth values, or shares of white
        levels = (255 * levels.astype(np.float64)).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def quantize(source: Path, bundle: Path, recipe: str) -> None:
    """Quantize in a fresh process and print what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in CALIBRATION.items():
            open_photograph(name, size).save(Path(folder) / f"{name}.png")
        command = [sys.executable, "-m", "vlmedge.runtime", "quantize", str(source)]
        command += [str(bundle), "--recipe", recipe, "--data", folder, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    print(
        f"recipe {recipe}: {result['seconds']:.0f} s, peak {result['peak_bytes'] / 2**30:.2f} GiB"
    )


def encode(bundle: Path, graph_inputs: list[dict]) -> list[np.ndarray]:
    """Image embeddings of some pictures."""
    backend = OrtBackend(bundle, read_manifest(bundle), providers="cpu")
    return [backend.encode_images("vision", **inputs)[0] for inputs in graph_inputs]


def main() -> None:
    """Quantize, weigh, compare."""
    args = parse_args()
    if not args.no_quantize:
        quantize(args.float_bundle, args.bundle, args.recipe)
    manifest = read_manifest(args.bundle)
    total = sum(record.bytes for record in manifest.files.values())
    print(f"size {total / 1e9:.3f} GB")
    for name, record in manifest.files.items():
        print(f"  {name:<24}{record.bytes:>15,}")
    if args.no_compare:
        return
    inputs = []
    for name, size in HELD_OUT.items():
        cut = make_image_input(open_photograph(name, size), manifest.pixels, manifest.vision)
        inputs.append({"pixel_values": cut.pixel_values, "position_ids": cut.position_ids})
    wanted, got = encode(args.float_bundle, inputs), encode(args.bundle, inputs)
    for (name, size), theirs, ours in zip(HELD_OUT.items(), wanted, got, strict=True):
        error = np.linalg.norm(theirs - ours) / np.linalg.norm(theirs)
        print(f"{name} {size[0]}x{size[1]}: relative L2 of image_embeds {error:.4f}")


if __name__ == "__main__":
    main()
