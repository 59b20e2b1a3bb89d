"""A bundle's graph, and where its initializers lie; nothing is run, so no engine is needed."""

from __future__ import annotations

from pathlib import Path

import onnx

from ..runtime.errors import BundleError
from ..runtime.manifest import Manifest
from ..runtime.regular_file import check_regular


def read_graph(folder: Path, manifest: Manifest, name: str) -> onnx.ModelProto:
    """A graph of a bundle, its weights left in their files.

    Raises:
        BundleError: the file is damaged.
    """
    path = folder / manifest.graphs[name].file
    try:
        check_regular(path)
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which has no public home
        raise BundleError(f"{path} is damaged: {error}") from error


def locate(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, offset and length in bytes of an initializer that lies outside of its graph."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])
