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
    from .answer import Answer
    from .errors import BundleError, ContextLengthError, ImageError, PromptError, VlmedgeError
    from .model import Model
    from .options import GenerationOptions

__all__ = [
    "Answer",
    "BundleError",
    "ContextLengthError",
    "GenerationOptions",
    "ImageError",
    "Model",
    "PromptError",
    "VlmedgeError",
]

turn_off("onnxruntime")

_MODULES = {"Answer": ".answer", "GenerationOptions": ".options", "Model": ".model"}

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
