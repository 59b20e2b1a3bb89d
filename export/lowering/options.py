"""The options of a TensorRT export, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .targets import Device, Target, find_target

DtypeOption = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DEFAULT_CONTEXT = 4096  # tokens of a cache whose size the graph fixes


@dataclass(frozen=True, slots=True)
class LoweringOptions:
    """For which TensorRT, and how.

    Attributes:
        target: name of a row of TARGETS.
        dtype: what is computed in. bf16 is what the checkpoints are trained in and never leaves its
            range; fp32 is the twin that ONNX Runtime's CPU runs.
        context: tokens of the cache, where the graph fixes them; None: DEFAULT_CONTEXT or the
            model's, the smaller.
        device: that it must run on, None: any the target comes with.
        link_weights: use the checkpoint's own files, hard-linked beside the graphs.
    """

    target: str
    dtype: DtypeOption = "bf16"
    context: int | None = None
    device: Device | None = None
    link_weights: bool = False

    def __post_init__(self) -> None:
        find_target(self.target)
        if self.device is not None and self.device not in get_args(Device):
            devices = ", ".join(get_args(Device))
            raise ValueError(f"device is {self.device!r}, needed one of {devices}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, needed one of {', '.join(DTYPES)}")
        if self.context is not None and self.row.cache == "append":
            raise ValueError(
                f"target {self.target} has no context of its own: its cache may be of any size, "
                "give --context to vlmedge build"
            )
        if self.context is not None and self.context < 1:
            raise ValueError(f"context is {self.context}, needed a number of tokens")

    @property
    def row(self) -> Target:
        """The target."""
        return find_target(self.target)

    @property
    def compute(self) -> str:
        """The dtype's full name."""
        return DTYPES[self.dtype]

    def capacity(self, model_context: int) -> int | None:
        """Tokens that the graph fixes, None where it doesn't.

        Raises:
            ValueError: more than the model has positions for.
        """
        if self.row.cache == "append":
            return None
        if self.context is not None and self.context > model_context:
            raise ValueError(
                f"context is {self.context}, the model has positions for {model_context} tokens"
            )
        return self.context or min(DEFAULT_CONTEXT, model_context)
