"""TensorRT-RTX for a machine without network: python scripts/pack_tensorrt_rtx.py dist/gpu-pack.

Downloads the wheels of NVIDIA's own packages and of a few small ones of which a GPU machine may
have none or too old a version, and compresses them into parts (gpu_check/pack.py). Takes minutes
of one core and 3 GiB. NVIDIA's licence is proprietary: the pack is made by whoever uses it, and is
never committed or passed on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gpu_check.pack import MAX_PACK_BYTES, MIB, PART_BYTES, RTX_FOLDER, WHEELS_FOLDER, write_pack

ROOT = Path(__file__).resolve().parent.parent
RTX_VERSION = "1.7.1.116"
# The library for CUDA 12: the one for 13 is built with a newer CUDA than driver 580 has.
RTX_WHEELS = ("tensorrt-rtx-cu12-libs", "tensorrt-rtx-cu12-bindings")
# What both pip and an old index know such wheels by.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# What exporting, quantizing and building import beside numpy, onnx, onnxruntime, ml-dtypes,
# tokenizers, pillow and sympy: those are too large to carry, the machine must have them.
SMALL_WHEELS = (
    "onnx-ir",
    "typing-extensions",
    "jinja2",
    "markupsafe",
    "mpmath",
    "jiwer",
    "rapidfuzz",
)
# The metapackage is an sdist whose only use here would be this file.
RTX_INIT = """\"\"\"TensorRT-RTX.\"\"\"

from tensorrt_rtx_bindings import *
from tensorrt_rtx_bindings import __version__
"""
_PARSER, _ENGINE = "libtensorrt_onnxparser_rtx.so.1", "libtensorrt_rtx.so.1"
NEEDED = (
    f"tensorrt_rtx_libs/{_ENGINE}",
    f"tensorrt_rtx_libs/{_PARSER}",
    "tensorrt_rtx_libs/__init__.py",
    "tensorrt_rtx_bindings/__init__.py",
    "tensorrt_rtx_bindings/tensorrt_rtx.so",
)


@dataclass(frozen=True, slots=True)
class Config:
    """What to pack, and for which Python."""

    folder: Path
    python: str
    rtx_version: str
    part_mib: int
    no_wheels: bool


def parse_args(argv: list[str] | None = None) -> Config:
    """Options -> Config."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="to write; replaced if there")
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    parser.add_argument("--rtx-version", default=RTX_VERSION)
    parser.add_argument("--part-mib", type=int, default=PART_BYTES // MIB, help="of one part")
    parser.add_argument("--no-wheels", action="store_true", help="TensorRT-RTX alone")
    config = Config(**vars(parser.parse_args(argv)))
    if not 1 <= config.part_mib <= MAX_PACK_BYTES // MIB:
        parser.error(f"--part-mib is {config.part_mib}, needed 1 to {MAX_PACK_BYTES // MIB}")
    return config


def make_pip_command(config: Config, requirements: list[str], target: Path) -> list[str]:
    """What downloads wheels for another Python than this one."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", config.python, *platforms, "--dest", str(target)),
        *requirements,
    ]


def main() -> None:
    """Download, unpack, compress."""
    config = parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-pack-") as scratch:
        wheels, content = Path(scratch) / "wheels", Path(scratch) / "content"
        download(config, wheels)
        packages = fill(wheels, content)
        tell("compressing: minutes")
        pack = write_pack(
            content,
            config.folder,
            python=config.python,
            packages=packages,
            part_bytes=config.part_mib * MIB,
        )
    for name, version in sorted(packages.items()):
        print(f"{name} {version}")
    for part in pack.parts:
        print(f"{config.folder / part.file}: {part.bytes / MIB:.1f} MiB")
    print(f"{config.folder}: {pack.bytes / MIB:.1f} MiB in all, for Python {pack.python}")


def download(config: Config, target: Path) -> None:
    """Wheels into a folder; the small ones in the versions of constraints.txt."""
    target.mkdir()
    tell("downloading TensorRT-RTX")
    exact = [f"{name}=={config.rtx_version}" for name in RTX_WHEELS]
    subprocess.run(make_pip_command(config, exact, target), check=True)
    if config.no_wheels:
        return
    tell("downloading small packages")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(make_pip_command(config, [*constraints, *SMALL_WHEELS], target), check=True)


def fill(wheels: Path, content: Path) -> dict[str, str]:
    """Unpack wheels as a pack has them; their names and versions.

    Raises:
        ValueError: a wheel of TensorRT-RTX lacks what is needed of it.
    """
    packages = {}
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        packages[name] = version
        is_rtx = name.startswith("tensorrt_rtx")
        folder = content / (RTX_FOLDER if is_rtx else f"{WHEELS_FOLDER}/{name}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    missing = [name for name in NEEDED if not (content / RTX_FOLDER / name).is_file()]
    if missing:
        raise ValueError(f"the wheels of TensorRT-RTX lack {', '.join(missing)}: another version?")
    init = content / RTX_FOLDER / "tensorrt_rtx" / "__init__.py"
    init.parent.mkdir()
    init.write_text(RTX_INIT, encoding="utf-8")
    return packages


def tell(text: str) -> None:
    """Progress."""
    print(f"pack_tensorrt_rtx: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
