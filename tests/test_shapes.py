"""Docstrings of public functions say the dtype and shape of every array, as "name: float32[N, K]".

A parameter's is in its entry under Args. A result's is under Returns or in the text above Args,
where "float32[N, K] -> int8[N, K]" says both. A class that keeps to a protocol repeats nothing.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("runtime", "export", "quant")
ARRAYS = {"NDArray", "ndarray", "Tensor"}  # a torch.Tensor only in export/verify
# What is inside of these has no shape of its own: arrays by name, and functions of arrays
OPAQUE = {"dict", "Mapping", "MutableMapping", "Callable", "Literal", "type"}
# As numpy names them; float and int where the width is any, any where the dtype is
SHAPE = re.compile(r"\b(?:bfloat16|float(?:8\w*|16|32|64)?|u?int(?:4|8|16|32|64)?|bool|any)\[")
Aliases = dict[str, ast.expr]


def count_arrays(annotation: ast.expr | None, aliases: Aliases) -> int:
    """Arrays of an annotation that need a shape: 2 of tuple[NDArray, NDArray | None, int]."""
    match annotation:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            if name in ARRAYS:
                return 1
            others = {key: value for key, value in aliases.items() if key != name}
            return count_arrays(aliases.get(name), others)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            if name in ARRAYS:
                return 1
            return 0 if name in OPAQUE else count_arrays(inner, aliases)
        case ast.BinOp(left=left, right=right):
            return max(count_arrays(left, aliases), count_arrays(right, aliases))
        case ast.Tuple(elts=items):
            return sum(count_arrays(item, aliases) for item in items)
        case ast.Constant(value=str(text)):
            return count_arrays(ast.parse(text, mode="eval").body, aliases)
    return 0


def read_sections(docstring: str) -> dict[str, list[str]]:
    """Section of a docstring ("Args") -> its entries, each with its further lines."""
    sections: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if heading := re.fullmatch(r"([A-Z]\w+):", line):
            entries = sections.setdefault(heading[1], [])
        elif line.startswith("     ") and entries:
            entries[-1] += "\n" + line.strip()
        elif line.startswith("    "):
            entries.append(line.strip())
    return sections


def find_debts(function: ast.FunctionDef, aliases: Aliases) -> list[str]:
    """Names of the parameters, and "return", that hold arrays of which no shape is said."""
    docstring = ast.get_docstring(function) or ""
    sections = read_sections(docstring)
    said: dict[str, str] = {}
    for entry in sections.get("Args", ()):
        names, _, text = entry.partition(":")
        said |= dict.fromkeys(re.findall(r"\w+", names), text)
    debts = [
        arg.arg
        for arg in list_parameters(function)
        if count_arrays(arg.annotation, aliases) and not SHAPE.search(said.get(arg.arg, ""))
    ]
    summary = re.split(r"^[A-Z]\w+:$", docstring, maxsplit=1, flags=re.MULTILINE)[0]
    taken, arrow, given = summary.rpartition("->")
    if arrow and len(SHAPE.findall(taken)) >= len(debts):
        debts = []
    returned = "\n".join([given, *sections.get("Returns", sections.get("Yields", ()))])
    if len(SHAPE.findall(returned)) < count_arrays(function.returns, aliases):
        debts.append("return")
    return debts


def list_parameters(function: ast.FunctionDef) -> list[ast.arg]:
    """Every parameter, in order."""
    return [arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)]


def list_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions of a module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


def list_contracts(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Methods of a module's protocols, each with its parameters."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases):
            yield from (sign(item) for item in node.body if isinstance(item, ast.FunctionDef))


def sign(function: ast.FunctionDef) -> tuple[str, ...]:
    """Name and parameters."""
    return function.name, *(arg.arg for arg in list_parameters(function))


def is_protocol(tree: ast.Module, function: str) -> bool:
    """Whether "A.f" is a method of a protocol."""
    return any(
        isinstance(node, ast.ClassDef)
        and node.name == function.partition(".")[0]
        and "Protocol" in map(ast.unparse, node.bases)
        for node in tree.body
    )


def read_aliases(tree: ast.Module) -> Aliases:
    """Names that a module gives to types (and to anything else, which no annotation names)."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def read_layers() -> tuple[dict[str, list[str]], int]:
    """Function ("quant/x.py: f") -> what it says no shape of; and how many have arrays."""
    paths = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in paths}
    everywhere: Aliases = {}
    for tree in trees.values():
        everywhere |= read_aliases(tree)
    contracts = {contract for tree in trees.values() for contract in list_contracts(tree)}
    debts, num_functions = {}, 0
    for name, tree in trees.items():
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }
        aliases = {key: everywhere[key] for key in imported & everywhere.keys()}
        aliases |= read_aliases(tree)
        for function, node in list_functions(tree):
            if "." in function and sign(node) in contracts and not is_protocol(tree, function):
                continue  # the protocol's docstring holds for every class that keeps to it
            found = find_debts(node, aliases)
            annotations = [
                arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg)
            ]
            num_functions += any(count_arrays(a, aliases) for a in [*annotations, node.returns])
            if found:
                debts[f"{name}: {function}"] = found
    return debts, num_functions


def test_every_public_function_on_arrays_says_their_shapes():
    debts, num_functions = read_layers()
    assert debts == {}, "say these as `name: float32[N, K], meaning` under Args: or Returns:"
    assert num_functions > 120, "the reader of signatures sees fewer than there were"


@pytest.mark.parametrize(
    ("signature", "docstring", "debts"),
    [
        ("x: NDArray", "X.", ["x"]),
        ("x: NDArray", "X.\n\n    Args:\n        x: float32[N, K], what it is.", []),
        ("x: NDArray", "X.\n\n    Args:\n        x: the rows,\n            float32[N, K].", []),
        ("x: NDArray", "X.\n\n    Args:\n        x: the rows.\n        y: float32[N].", ["x"]),
        ("x: NDArray, y: NDArray", "X.\n\n    Args:\n        x, y: int8[N].", []),
        ("x: np.ndarray | None = None", "X: float32[N].", ["x"]),
        ("*, x: list[NDArray[np.int64]]", "X.", ["x"]),
        ("*x: 'NDArray'", "X.", ["x"]),
        ("x: torch.Tensor", "X.", ["x"]),
        ("x: Rows", "X.", ["x"]),
        ("x: Looped", "X.", []),
        ("x: NDArray", "Rows, float32[N, K] -> their number.", []),
        ("x: NDArray, y: NDArray", "Rows, float32[N, K] -> their number.", ["x", "y"]),
        ("x: dict[str, NDArray], y: Callable[[NDArray], None], z: int", "X.", []),
    ],
)
def test_parameters_without_a_shape_are_seen(signature, docstring, debts):
    assert find_debts(parse(f"({signature})", docstring), ALIASES) == debts


@pytest.mark.parametrize(
    ("returned", "docstring", "debts"),
    [
        ("NDArray", "X.", ["return"]),
        ("NDArray", "X.\n\n    Returns:\n        float32[N], what it is.", []),
        ("NDArray", "X.\n\n    Returns:\n        Rows of floats [N].", ["return"]),
        ("tuple[NDArray, int]", "X.\n\n    Returns:\n        rows: any[N].\n        n: rows.", []),
        ("tuple[NDArray, NDArray]", "X.\n\n    Returns:\n        a: int8[N].", ["return"]),
        ("Rows", "X.\n\n    Returns:\n        a: int8[N].\n        b: bfloat16[].", []),
        ("NDArray", "A layer's matrix, float32[N, K].", []),
        ("NDArray", "X.\n\n    Args:\n        x: float32[N, K].", ["return"]),
        ("NDArray", "Of uint8[N] -> X.", ["return"]),
        ("Iterator[NDArray]", "X.\n\n    Yields:\n        uint8[H, W, 3].", []),
        ("None", "X.", []),
    ],
)
def test_returned_arrays_without_a_shape_are_seen(returned, docstring, debts):
    assert find_debts(parse(f"() -> {returned}", docstring), ALIASES) == debts


ALIASES = read_aliases(ast.parse("Rows = tuple[NDArray, NDArray]\nLooped = list[Looped]"))


def parse(signature: str, docstring: str) -> ast.FunctionDef:
    (node,) = ast.parse(f'def f{signature}:\n    """{docstring}"""').body
    assert isinstance(node, ast.FunctionDef)
    return node


def test_public_functions_are_those_that_others_may_call():
    code = (
        "def f(): pass\ndef _g(): pass\n"
        "class A:\n  def h(self): pass\n  def _i(self): pass\n  def __call__(self): pass\n"
        "class _B:\n  def j(self): pass\n"
    )
    assert [name for name, _ in list_functions(ast.parse(code))] == ["f", "A.h"]
