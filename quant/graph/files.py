"""Read a bundle's graph and where its initializers lie, without an engine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import BundleError
from ...runtime.files.regular_file import read_regular


def read_graph(folder: Path, manifest: Manifest, name: str) -> onnx.ModelProto:
    """A graph of a bundle, its weights left in their files.

    The bytes that are parsed are those that are compared with the manifest's hash.

    Raises:
        BundleError: the file is damaged.
    """
    file = manifest.graphs[name].file
    path = folder / file
    data = read_regular(path)
    sha256, needed = hashlib.sha256(data).hexdigest(), manifest.files[file].sha256
    if sha256 != needed:
        raise BundleError(
            f"{path} is damaged: not what the manifest says (SHA-256 {sha256[:12]}..., needed "
            f"{needed[:12]}...); copy or export the bundle again"
        )
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, which has no public home
        raise BundleError(f"{path} is damaged: {error}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if location not in manifest.files:  # "../../etc/passwd" is none either
            raise BundleError(
                f"{path} reads {tensor.name} from {location!a:.200}, of which the manifest has no "
                "record: the file is another bundle's"
            )
    return model


def locate(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, offset and length in bytes of an initializer that lies outside of its graph."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])
