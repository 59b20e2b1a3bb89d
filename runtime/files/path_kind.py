"""Tell what lies where a bundle or a checkpoint was expected, and which command helps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

MANIFEST = "manifest.json"
ENGINE_RECORD = "engines.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MAX_LISTED = 5  # bundles inside a folder that a message names
_MAGIC_BYTES = 8
# First bytes of a file -> what it is, and what to do instead
_MAGICS = (
    (
        b"GGUF",
        "a GGUF file of llama.cpp",
        "vlmedge export takes the Hugging Face checkpoint it was made of",
    ),
    (b"PK\x03\x04", "a zip archive", "unpack it and give the folder"),
    (b"\x1f\x8b", "a compressed archive", "unpack it and give the folder"),
    (b"BZh", "a compressed archive", "unpack it and give the folder"),
    (b"\xfd7zXZ", "a compressed archive", "unpack it and give the folder"),
    (b"\x28\xb5\x2f\xfd", "a compressed archive", "unpack it and give the folder"),
)
_SUFFIXES = {
    ".gguf": _MAGICS[0][1:],
    ".zip": _MAGICS[1][1:],
    ".tar": ("an archive", "unpack it and give the folder"),
    ".engine": ("a TensorRT engine", "give the folder of the bundle it was built for"),
    ".plan": ("a TensorRT engine", "give the folder of the bundle it was built for"),
    ".trt": ("a TensorRT engine", "give the folder of the bundle it was built for"),
    ".onnx": ("an ONNX graph", "give the folder of the bundle it belongs to"),
    ".safetensors": ("a file of weights", "give the folder of the checkpoint to vlmedge export"),
    ".bin": ("a file of weights", "give the folder of the checkpoint to vlmedge export"),
    ".pt": ("a file of weights", "give the folder of the checkpoint to vlmedge export"),
    ".pth": ("a file of weights", "give the folder of the checkpoint to vlmedge export"),
}


def is_checkpoint(folder: Path, besides: tuple[str, ...] = ()) -> bool:
    """Whether a folder looks like a Hugging Face checkpoint: config.json and weights.

    Args:
        folder: the folder to look at.
        besides: names of files that are not a model's weights, though they end like those.
    """
    return (folder / "config.json").is_file() and any(
        path.name not in besides
        for pattern in ("*.safetensors*", "*.bin", "*.bin.index.json")
        for path in folder.glob(pattern)
    )


def may_be_checkpoint(path: Path) -> bool:
    """Whether a path without a manifest is a checkpoint's folder, or the hub id of one."""
    if path.is_dir():
        has_config = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
        return has_config and not (path / MANIFEST).is_file()
    return not path.exists() and bool(HUB_ID.fullmatch(str(path)))


def explain_no_bundle(path: str | Path) -> str:
    """Say what a path without a manifest is, and how to get from it to a bundle."""
    path = Path(path)
    if path.is_file():
        return _explain_file(path, "bundle")
    if not path.is_dir():
        text = f"{path} is not a bundle: no such directory"
        if HUB_ID.fullmatch(str(path)):
            text += f"; if it is a hub id, make a bundle of it with {_export(path)}"
        return text
    if is_checkpoint(path):
        return f"{path} is a checkpoint, not a bundle: make a bundle of it with {_export(path)}"
    if (path / "adapter_config.json").is_file():
        return (
            f"{path} is an adapter (LoRA), not a bundle: make a bundle of it and its base with "
            f"{_export(path)}"
        )
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        if (folder / MANIFEST).is_file():
            return (
                f"{path} is a folder inside a bundle, not a bundle: give {_shorten(path, folder)}"
            )
    inside = sorted(entry.parent for entry in path.glob(f"*/{MANIFEST}"))
    if inside:
        more = "" if len(inside) <= MAX_LISTED else f" and {len(inside) - MAX_LISTED} more"
        names = ", ".join(str(entry) for entry in inside[:MAX_LISTED])
        return f"{path} is not a bundle, but holds some: give one of {names}{more}"
    if (path / ENGINE_RECORD).is_file():
        return f"{path} is a set of engines, not a bundle: give the bundle it was built for"
    return f"{path} is not a bundle: no {MANIFEST}; vlmedge export makes bundles of checkpoints"


def explain_no_checkpoint(path: str | Path) -> str | None:
    """Say what lies where a checkpoint was expected; None: it may be one, or nothing is there."""
    path = Path(path)
    if path.is_file():
        return _explain_file(path, "checkpoint")
    if (path / MANIFEST).is_file():
        return (
            f"{path} is a bundle already, not a checkpoint: vlmedge export --target writes it for "
            "TensorRT, vlmedge quantize makes a smaller one of a float bundle"
        )
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        return (
            f"{path} is an adapter (LoRA), not a checkpoint: vlmedge export merges it, everything "
            "else needs its base or the merged checkpoint"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        patterns = ("*/config.json", "snapshots/*/config.json")  # the latter: the hub's cache
        inside = sorted(entry.parent for pattern in patterns for entry in path.glob(pattern))
        if inside:
            return f"{path} holds no config.json; did you mean {inside[0]}?"
    return None


def _explain_file(path: Path, needed: str) -> str:
    if path.name == MANIFEST and needed == "bundle":
        return f"{path} is a bundle's manifest: give its folder, {path.parent}"
    if path.name == "config.json":
        return f"{path} is a checkpoint's configuration: give its folder, {path.parent}"
    found = _SUFFIXES.get(path.suffix.lower())
    try:
        with path.open("rb") as file:
            start = file.read(_MAGIC_BYTES)
    except OSError as error:
        return f"{path} is a file that can't be read ({error.strerror}), not a {needed}"
    for magic, *texts in _MAGICS:
        if start.startswith(magic):
            found = (texts[0], texts[1])
    if found is None:
        return f"{path} is a file, not a {needed}: a {needed} is a folder"
    what, advice = found
    if needed == "checkpoint" and what == "a file of weights":
        advice = f"give its folder, {path.parent}"
    return f"{path} is {what}, not a {needed}: {advice}"


def _export(path: Path) -> str:
    name = path.name or path.absolute().name
    return f"vlmedge export {shlex.quote(str(path))} {shlex.quote(f'{name}.bundle')}"


def _shorten(path: Path, folder: Path) -> Path:
    """The bundle around `path`, spelled as the caller spelled it where that is possible."""
    if not path.is_absolute():
        for given in path.parents:
            if given.absolute() == folder:
                return given
    return folder
