"""Bundle -> answers: the torch-free runtime of vlmedge.

```python
from vlmedge.runtime import GenerationOptions, Model

with Model.load("qwen2-vl-2b.bundle") as model:
    answer = model.answer("What is the total?", ["receipt.jpg"])
    print(answer.text)
```

Importing this loads no engine, tokenizer or template library; `Model.load` does.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .telemetry import turn_off

if TYPE_CHECKING:
    from .answer import Answer, Timings
    from .backend import Residency
    from .engine import Cancel
    from .errors import (
        BackendError,
        BundleError,
        ContextLengthError,
        ImageError,
        PromptError,
        VlmedgeError,
    )
    from .manifest import Manifest, MropeRule
    from .model import Messages, Model
    from .options import FinishReason, GenerationOptions
    from .stream import AnswerStream

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
    "Manifest": ".manifest",
    "Messages": ".model",
    "Model": ".model",
    "MropeRule": ".manifest",
    "Residency": ".backend",
    "Timings": ".answer",
}

try:
    __version__ = version("vlmedge")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, ".errors"), __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
