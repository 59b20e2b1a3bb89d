"""Answer questions about pictures from a bundle: the torch-free runtime of vlmedge.

```python
from vlmedge.runtime import GenerationOptions, Model

with Model.load("qwen2-vl-2b.bundle") as model:
    answer = model.answer("What is the total?", ["receipt.jpg"])
    print(answer.text)
```

Importing this loads no engine, tokenizer or template library; `Model.load` does.
"""

from .telemetry import turn_off

TYPE_CHECKING = False  # typing and importlib.metadata take time, and this is loaded first of all
if TYPE_CHECKING:
    from typing import Any

    from .answer import Answer, Timings
    from .backends.backend import Residency
    from .bundle.manifest import Manifest, MropeRule
    from .engine import Cancel
    from .errors import (
        BackendError,
        BundleError,
        ContextLengthError,
        ImageError,
        PromptError,
        VlmedgeError,
    )
    from .model import Messages, Model
    from .options import FinishReason, GenerationOptions
    from .stream import AnswerStream

    __version__: str

__all__ = [
    "Answer",
    "AnswerStream",
    "BackendError",
    "BundleError",
    "Cancel",
    "ContextLengthError",
    "FinishReason",
    "GenerationOptions",
    "ImageError",
    "Manifest",
    "Messages",
    "Model",
    "MropeRule",
    "PromptError",
    "Residency",
    "Timings",
    "VlmedgeError",
]

turn_off("onnxruntime")

# Where each name is; the errors are the rest
_MODULES = {
    "Answer": ".answer",
    "AnswerStream": ".stream",
    "Cancel": ".engine",
    "FinishReason": ".options",
    "GenerationOptions": ".options",
    "Manifest": ".bundle.manifest",
    "Messages": ".model",
    "Model": ".model",
    "MropeRule": ".bundle.manifest",
    "Residency": ".backends.backend",
    "Timings": ".answer",
}


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        return _find_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES.get(name, ".errors"), __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vlmedge")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
