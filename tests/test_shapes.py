"""Every public function on arrays says their shapes and dtypes in its docstring."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARRAY = re.compile(r"\b(NDArray|ndarray)\b")
# float32[N, 1176], int64[L], uint8[...]; float[...] and dtype[...] where any of them will do
SHAPE = re.compile(r"\b(u?int\d+|bool|b?float\d*(_e\dm\d\w*)?|dtype)\[[^\]]+\]")


def find_unsaid(source: str) -> tuple[int, list[str]]:
    """How many public functions of a module take or return arrays, and who of them says no shape.

    An `__init__` may say it in its class's docstring. A callable that takes arrays is no array.
    """
    count, unsaid = 0, []

    def visit(body: list[ast.stmt], path: str, shown: str) -> None:
        nonlocal count
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{path}{node.name}.", ast.get_docstring(node) or "")
            elif isinstance(node, ast.FunctionDef) and _is_public(node.name):
                args = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                notes = [arg.annotation for arg in args] + [node.returns]
                texts = [ast.unparse(note) for note in notes if note is not None]
                if any(ARRAY.search(text) and "Callable" not in text for text in texts):
                    count += 1
                    doc = ast.get_docstring(node) or ""
                    if not SHAPE.search(doc + (shown if node.name == "__init__" else "")):
                        unsaid.append(f"{path}{node.name}")

    visit(ast.parse(source).body, "", "")
    return count, unsaid


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in {"__init__", "__call__"}


@pytest.mark.parametrize(("layer", "least"), [("runtime", 40), ("quant", 80), ("export", 25)])
def test_public_functions_on_arrays_say_shapes_and_dtypes(layer, least):
    total, missing = 0, []
    for path in sorted((ROOT / layer).rglob("*.py")):
        count, unsaid = find_unsaid(path.read_text("utf-8"))
        total += count
        missing += [f"{path.relative_to(ROOT)}: {name}" for name in unsaid]
    assert not missing
    assert total >= least, "the reader of signatures finds fewer than there were"


def test_a_function_that_says_nothing_is_found():
    source = '''
class Cutter:
    """Cuts."""

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Cut an image."""

    def _hidden(self, image: NDArray[np.uint8]) -> None: ...

def resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[H, W, 3] -> uint8[h, w, 3]."""

def ask(read: Callable[[], NDArray]) -> None: ...
'''
    assert find_unsaid(source) == (2, ["Cutter.cut"])
