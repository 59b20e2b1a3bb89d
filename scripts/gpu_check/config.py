"""What a check is asked for -> one frozen object, which its steps read back from a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_NAME = "config.json"
DEFAULT_PACK = Path("dist/gpu-pack")
DEFAULT_WORK = Path("bundles/gpu-check")


@dataclass(frozen=True, slots=True)
class Config:
    """What every step knows.

    Attributes:
        work: folder of everything that is made.
        pack: of TensorRT-RTX; where there is none, what Python already has is used.
        size: of the random checkpoint that is timed, a key of make_checkpoint.SIZES.
        precisions: keys of PRECISIONS, in the order they are worked on.
        dry_run: no GPU: engines are built for two that are named, nothing of them runs.
        side: of the square pictures that the ViT is timed with, in pixels.
        prompt_tokens: of one prefill, and in the cache when decoding is timed.
        context: tokens of the cache, which the graph fixes.
        num_runs: timed runs of each figure.
    """

    work: Path
    pack: Path
    size: str
    precisions: tuple[str, ...]
    dry_run: bool
    sides: tuple[int, ...]
    prompt_tokens: int
    context: int
    num_runs: int

    def to_json(self) -> str:
        """As the steps read it."""
        content = dataclasses.asdict(self) | {"work": str(self.work), "pack": str(self.pack)}
        return json.dumps(content, indent=1) + "\n"


def read_config(work: Path) -> Config:
    """What the command wrote for its steps."""
    raw = json.loads((work / CONFIG_NAME).read_text(encoding="utf-8"))
    for name in ("precisions", "sides"):
        raw[name] = tuple(raw[name])
    return Config(**raw | {"work": Path(raw["work"]), "pack": Path(raw["pack"])})
