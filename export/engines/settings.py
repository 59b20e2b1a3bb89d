"""The settings of `vlmedge build`: one frozen object, checked when it is made."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from ...runtime.decode.generate import PREFILL_TOKENS

# Of a picture, where nothing else is said: 1280 visual tokens, transformers' own default. Qwen2-VL
# itself allows 16384, whose attention no board has the memory for.
DEFAULT_MAX_PIXELS = 1280 * 28 * 28
MAX_OPTIMIZATION_LEVEL = 5  # of TensorRT's builder: 0 builds fastest, 5 searches longest


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How large the requests may be that engines are built for, and how they are built.

    Attributes:
        max_batch: sequences that are answered together.
        max_images: pictures of one grid that are encoded together, frame pairs of a clip.
        max_pixels: of a picture; None: DEFAULT_MAX_PIXELS or the bundle's budget, the smaller. The
            budget is the upper limit.
        context: tokens of the cache; None: what the graph fixes, 4096 where it fixes nothing.
        prefill_tokens: the most new tokens of one decoder call.
        split: consecutive engines of the decoder.
        separate_lm_head: the last matrix as an engine of its own.
        video: also the graph of clips.
        workspace_mib: scratch memory a layer may use while it is built and run; None: no limit.
        optimization_level: 0 to 5; None: TensorRT's own.
        weight_streaming: engines may leave weights in the host's memory.
        compute_capability: tensorrt_rtx only, "8.6"; None: this GPU's.
        timing_cache: file that measured kernels are read from and written to, tensorrt only; None:
            one beside the engines, of this GPU and version.
        accept_warning: texts of warnings that would end a build and are known to be harmless.
    """

    max_batch: int = 1
    max_images: int = 1
    max_pixels: int | None = None
    context: int | None = None
    prefill_tokens: int = PREFILL_TOKENS
    split: int = 1
    separate_lm_head: bool = False
    video: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    weight_streaming: bool = False
    compute_capability: str | None = None
    timing_cache: Path | None = None
    accept_warning: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no bundle could be built with."""
        for name in ("max_batch", "max_images", "prefill_tokens", "split"):
            _check_positive(name, getattr(self, name))
        if self.prefill_tokens > PREFILL_TOKENS:
            raise ValueError(
                f"prefill_tokens is {self.prefill_tokens}, the runtime reads prompts in pieces of "
                f"at most {PREFILL_TOKENS}"
            )
        for name in ("max_pixels", "context", "workspace_mib"):
            if (value := getattr(self, name)) is not None:
                _check_positive(name, value)
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
            raise ValueError(f"optimization_level is {level}, needed 0 to {MAX_OPTIMIZATION_LEVEL}")
        capability = self.compute_capability
        if capability is not None and not re.fullmatch(r"[1-9][0-9]?\.[0-9]", capability):
            raise ValueError(
                f"compute_capability is {capability!r}, needed major and minor, as in 8.6"
            )
        if not all(text.strip() and text.isprintable() for text in self.accept_warning):
            raise ValueError("accept_warning holds an empty text: it would accept everything")

    def to_record(self) -> dict[str, str]:
        """The settings that were given, as text: those at their defaults are left out."""
        return {name: " | ".join(texts) for name, texts in self._list_given().items()}

    def to_options(self) -> list[str]:
        """The settings that were given, as `vlmedge build` takes them."""
        options = []
        for name, texts in self._list_given().items():
            option = f"--{name.replace('_', '-')}"
            for text in texts:
                options += [option] if getattr(self, name) is True else [option, text]
        return options

    def _list_given(self) -> dict[str, list[str]]:
        given = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                given[field.name] = [
                    str(one) for one in (value if isinstance(value, tuple) else [value])
                ]
        return given


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, needed 1 or more")
