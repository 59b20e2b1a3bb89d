"""The protocol of a model that can be observed: what its ViT and decoder make of an example.

Two implementations: `observe.BundleSide`, and transformers itself in the export package, which is
found by an entry point. A side is opened, shown every example and closed before the next one is
opened, so that the peak of memory is that of the larger; what it put out lies on a `Shelf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import MANIFEST_NAME
from ...runtime.errors import BackendError
from ...runtime.files.path_kind import explain_no_checkpoint
from ..data.examples import Example
from .layer_rows import LayerTracer
from .settings import Settings
from .shelf import ArrayShelf

# Where a distribution offers to open checkpoints, as an OpenCheckpoint
GROUP = "vlmedge.checkpoints"
ENTRY = "reference"
ARRAYS = ("pixel_values", "before_merger", "image_embeds")  # of a Visual, in order


class NotFiniteError(ValueError):
    """A side put out NaN or infinity; says at which level."""


@dataclass(frozen=True, slots=True)
class Visual:
    """One picture or clip on its way through the ViT; N patches, M visual tokens.

    Attributes:
        bucket: see `buckets.name_bucket`.
        pixel_values: float32[N, 1176], normalized.
        before_merger: float32[N, C], the sum behind the last block.
        image_embeds: float32[M, D].
    """

    bucket: str
    pixel_values: NDArray[np.float32]
    before_merger: NDArray[np.float32]
    image_embeds: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a side made of one example.

    Attributes:
        visuals: in the order of the prompt.
        token_ids: its own answer, the token that ended it included.
        text: of that answer.
        logits: float32[P, V]; before each token of the answer, or of the one that was forced; as
            the graph gives them, before penalties and sampling.
        ended: whether an end token ended the answer, and not its longest length.
    """

    visuals: tuple[Visual, ...]
    token_ids: tuple[int, ...]
    text: str
    logits: NDArray[np.float32]
    ended: bool


class Side(Protocol):
    """A model behind a check."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def settings(self) -> Settings:
        """What decides its answers beside the weights; see `settings`."""
        ...

    @property
    def decoding(self) -> str:
        """How it picks tokens, in words."""
        ...

    def observe(
        self, example: Example, max_new_tokens: int, *, is_plain: bool = False
    ) -> Observation:
        """Answer by its own settings, see `decoding`, and keep everything on the way.

        Args:
            example: to answer; what is needed is in its messages.
            max_new_tokens: the longest answer; 0 looks at the pictures alone.
            is_plain: the likeliest token each time, past every end: what compares implementations.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class CheckpointSide(Side, LayerTracer, Protocol):
    """A checkpoint in its reference implementation, which can be looked into as well."""


OpenCheckpoint = Callable[[str, Path, int | None], CheckpointSide]


def is_bundle(path: str | Path) -> bool:
    """Whether a folder holds a manifest; else it is taken for a checkpoint."""
    return (Path(path) / MANIFEST_NAME).is_file()


def open_checkpoint(checkpoint: str, bundle: Path, num_threads: int | None) -> CheckpointSide:
    """Open a checkpoint in its reference implementation.

    Args:
        checkpoint: a folder or hub id.
        bundle: that it is compared with; says of what size the model is.
        num_threads: None: all cores.

    Raises:
        ValueError: what lies there is no checkpoint.
        BackendError: no installed distribution can open checkpoints.
        ModuleNotFoundError: torch or transformers is missing.
    """
    if problem := explain_no_checkpoint(checkpoint):  # before torch is asked for
        raise ValueError(problem)
    for entry in entry_points(group=GROUP, name=ENTRY):
        open_side: OpenCheckpoint = entry.load()
        return open_side(checkpoint, bundle, num_threads)
    raise BackendError(
        f"{checkpoint} is no bundle, and nothing installed here can open checkpoints: "
        "pip install 'vlmedge[verify]', or compare with a float bundle"
    )


class Shelf:
    """Observations on disk until their other half is there."""

    def __init__(self, arrays: ArrayShelf) -> None:
        """Of nothing yet."""
        self._arrays = arrays
        self._texts: dict[int, tuple[tuple[int, ...], str, bool, tuple[str, ...]]] = {}

    def put(self, index: int, seen: Observation) -> None:
        """Keep one.

        Raises:
            OSError: the disk is full.
        """
        arrays = {"logits": seen.logits}
        for number, visual in enumerate(seen.visuals):
            arrays |= {f"{name}{number}": getattr(visual, name) for name in ARRAYS}
        self._arrays.put(str(index), arrays)
        buckets = tuple(visual.bucket for visual in seen.visuals)
        self._texts[index] = (seen.token_ids, seen.text, seen.ended, buckets)

    def take(self, index: int) -> Observation:
        """Read one back; it is not kept any longer."""
        token_ids, text, ended, buckets = self._texts.pop(index)
        arrays = self._arrays.read(str(index))
        self._arrays.remove(str(index))
        visuals = tuple(
            Visual(bucket, *(arrays[f"{name}{number}"] for name in ARRAYS))
            for number, bucket in enumerate(buckets)
        )
        return Observation(visuals, token_ids, text, arrays["logits"], ended)
