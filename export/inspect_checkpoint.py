"""`vlmedge inspect CHECKPOINT`: what would be exported, by which settings, what is in the way.

Only headers of weight files are read. All readers are asked, so that several reasons against an
export are told at once.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.bundle.manifest import Manifest
from ..runtime.errors import BundleError
from ..runtime.inputs.request_check import check_requests
from ..runtime.terminal.console import format_bytes, print_json, print_notice, print_table
from .checkpoint.config import ModelSpec, find_model_spec
from .checkpoint.files.origin import Found, Origin
from .checkpoint.generation import find_generation_defaults
from .checkpoint.open import Checkpoint, find_folder, open_checkpoint
from .checkpoint.pixels import find_pixel_budget
from .checkpoint.shapes import expected_shapes
from .checkpoint.text.chat_template import find_chat_template
from .checkpoint.text.tokenizer import find_tokenizer
from .exporter import prepare

T = TypeVar("T")


@dataclass(slots=True)
class Inspection:
    """What was found; filled reader by reader.

    Attributes:
        model: facts of the model and its weights, (name, value).
        origins: of every setting that could be read.
        unusual: remarks, a line each.
        refused: why it can't be exported; empty if it can.
    """

    name: str
    model: list[tuple[str, str]] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    unusual: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def read(self, reader: Callable[[], Found[T]]) -> T | None:
        """The reader's value, and what it tells; None where it refuses."""
        found = self.attempt(reader)
        if found is None:
            return None
        self.origins += found.origins
        self.unusual += found.unusual
        return found.value

    def attempt(self, step: Callable[[], T]) -> T | None:
        """What a step gives; None where it refuses, for a reason that is kept once."""
        try:
            return step()
        except (ValueError, OSError) as error:
            if (reason := str(error)) not in self.refused:
                self.refused.append(reason)
            return None


def inspect(checkpoint: Path, *, as_json: bool = False) -> None:
    """The command for what is no bundle; an entry point, as the runtime stands below.

    Raises:
        ValueError: no such checkpoint; or, after all is printed, one that can't be exported.
    """
    found = inspect_checkpoint(str(checkpoint))
    if as_json:
        print_json(to_json(found))
    else:
        _print(found)
    if found.refused:
        more = f" and {len(found.refused) - 1} reasons more" if len(found.refused) > 1 else ""
        raise ValueError(f"{found.name} can't be exported: {found.refused[0]}{more}")


def inspect_checkpoint(checkpoint: str) -> Inspection:
    """Ask every reader.

    Raises:
        ValueError: there is no such checkpoint.
    """
    folder = find_folder(checkpoint)
    found = Inspection(folder.resolve().name if Path(checkpoint).is_dir() else checkpoint)
    spec = found.read(lambda: find_model_spec(folder))
    if spec is None:
        found.read(lambda: find_generation_defaults(folder))
        found.read(lambda: find_chat_template(folder))
        return found
    found.read(lambda: find_pixel_budget(folder, spec))
    found.read(lambda: find_tokenizer(folder, spec.tokens))
    found.read(lambda: find_chat_template(folder))
    found.read(lambda: find_generation_defaults(folder, spec.decoder.vocab_size))
    source = found.attempt(lambda: open_checkpoint(checkpoint))
    found.model += _describe_model(source.spec if source else spec)
    if source is not None:
        found.model += _describe_weights(source)
        found.unusual += [remark for remark in source.remarks if remark not in found.unusual]
    if not found.refused:
        prepared = found.attempt(lambda: prepare(checkpoint))
        if prepared is not None:
            found.attempt(lambda: _ask(prepared.texts, prepared.manifest))
    return found


def to_json(found: Inspection) -> dict[str, Any]:
    """One object for a script."""
    return {
        "ok": not found.refused,
        "name": found.name,
        "model": dict(found.model),
        "settings": [dataclasses.asdict(origin) for origin in found.origins],
        "unusual": found.unusual,
        "refused": found.refused,
    }


def _describe_model(spec: ModelSpec) -> list[tuple[str, str]]:
    parameters = sum(map(math.prod, expected_shapes(spec).values()))
    head = "the embedding table" if spec.tied_lm_head else "a matrix of its own"
    decoder, vision = spec.decoder, spec.vision
    return [
        ("model", "Qwen2-VL"),
        ("parameters", f"{parameters:,}"),
        ("ViT", f"{vision.depth} layers of {vision.embed_dim}"),
        ("decoder", f"{decoder.num_layers} layers of {decoder.hidden_size}"),
        ("lm_head", head),
        ("context", f"{decoder.max_position_embeddings} tokens"),
    ]


def _describe_weights(source: Checkpoint) -> list[tuple[str, str]]:
    dtypes = Counter(tensor.dtype for tensor in source.tensors.values())
    stored = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.most_common())
    files = [path for name, path in source.source_files.items() if name != "config.json"]
    size = sum(path.stat().st_size for path in files)
    facts = [
        ("tensors", stored),
        ("weight files", f"{len(files)}, {format_bytes(size)}"),
    ]
    if source.packed:
        kinds = Counter(
            f"{matrix.method} {matrix.bits} bits, groups of {matrix.group_size}"
            for matrix in source.packed.values()
        )
        facts += [("packed", f"{count} layers by {kind}") for kind, count in kinds.items()]
    return facts


def _ask(texts: dict[str, bytes], manifest: Manifest) -> None:
    """Make one request of a picture, as an export does before it writes.

    Raises:
        BundleError: tokenizer or template can't make it.
    """
    with tempfile.TemporaryDirectory(prefix="vlmedge-") as folder:
        for name, content in texts.items():
            (Path(folder) / name).write_bytes(content)
        try:
            check_requests(Path(folder), manifest)
        except BundleError as error:
            raise ValueError(str(error)) from error


def _print(found: Inspection) -> None:
    print_table(f"Checkpoint {found.name}", ("", ""), found.model)
    # Of generation's many settings those that a file names
    hidden = [o for o in found.origins if o.setting.startswith("generation.") and o.file is None]
    rows = [
        (origin.setting, _shorten(origin.value), origin.place)
        for origin in found.origins
        if origin not in hidden
    ]
    if hidden:
        rows.append((f"{len(hidden)} more of generation", "off or neutral", hidden[0].place))
    print_table("Settings", ("setting", "value", "from"), rows)
    for remark in found.unusual:
        print_notice(f"unusual: {remark}")
    for reason in found.refused:
        print_notice(f"refused: {reason}")


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
