"""Jinja's sandbox with a meter at every loop, call, filter and operation of a template.

Nothing is computed while a template compiles, and everything it computes afterwards draws on a
budget (`budget.py`). Filters and methods that have no use in a prompt and whose cost is hard to
tell are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from .budget import (
    MAX_FIELD_WIDTH,
    STEP_UNITS,
    WRITE_UNITS,
    BoundedNamespace,
    Budget,
    TemplateLimitError,
    charge,
    check_backwards,
    check_binop,
    check_braces,
    check_format,
    check_indent,
    check_int,
    check_join,
    check_lines,
    check_replace,
    check_rsplit,
    check_split,
    check_strip,
    get_budget,
)

_LEFT_OUT = (
    *("filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"),
    "forceescape",
)
# Methods of values that templates may call: name -> the check before the call, or None where the
# result is at most a few times as large as the value.
_STR_METHODS: dict[str, Callable[..., None] | None] = dict.fromkeys(
    (
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "lower",
        "partition",
        "removeprefix",
        "removesuffix",
        "startswith",
        "swapcase",
        "title",
        "upper",
        "center",
        "ljust",
        "rjust",
        "zfill",
    )
) | {
    "replace": check_replace,
    "join": check_join,
    "split": check_split,
    "rsplit": check_rsplit,
    **dict.fromkeys(("rfind", "rindex", "rpartition"), check_backwards),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), check_strip),
    "splitlines": check_lines,
    "format": lambda text, *args, **kwargs: check_braces(text, (*args, *kwargs.values())),
    "format_map": lambda text, values: check_braces(text, values.values()),
}
_METHODS: tuple[tuple[type, dict[str, Callable[..., None] | None]], ...] = (
    (str, _STR_METHODS),
    (dict, dict.fromkeys(("copy", "get", "items", "keys", "values"))),
    (list, dict.fromkeys(("copy", "count", "index"))),
    (tuple, dict.fromkeys(("count", "index"))),
    (int, dict.fromkeys(("bit_length", "is_integer"))),
    (float, dict.fromkeys(("is_integer",))),
)


class _Metering(NodeTransformer):
    """Puts the budget's filters into a template where Jinja has no hook: see `_METERS`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja calls it so
        self.generic_visit(node)
        node.iter = _call("iterate", node.iter)  # type: ignore[arg-type]  # an Expr
        node.body.insert(0, _spend(node))
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _spend(node))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _weigh(node.expr)
        for operand in node.ops:
            operand.expr = _weigh(operand.expr)
        return node

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _weigh(node)

    visit_Dict = visit_List  # noqa: N815
    visit_Tuple = visit_List  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _weigh(node) if isinstance(node.arg, nodes.Slice) else node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise jinja2.TemplateSyntaxError("autoescape has no place in a prompt", node.lineno)


def _call(meter: str, value: nodes.Expr) -> nodes.Expr:
    # The space keeps templates from calling it by name.
    return nodes.Filter(value, f"budget {meter}", [], [], None, None, lineno=value.lineno)


def _weigh(value: nodes.Expr) -> nodes.Expr:
    return value if isinstance(value, nodes.Const) else _call("read", value)


def _spend(node: nodes.Node) -> nodes.Node:
    """A statement that pays for one run of a body: a step, and the text that stands in it."""
    size = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
    units = nodes.Const(STEP_UNITS + size * WRITE_UNITS, lineno=node.lineno)
    return nodes.ExprStmt(_call("spend", units), lineno=node.lineno)


def _concat(items: list[Any]) -> str:
    budget = get_budget()
    return budget.made("".join([budget.write(item) for item in items]))


# Arguments that Jinja itself adds to every call in a loop or a block.
_HIDDEN_ARGUMENTS = ("_loop_vars", "_block_vars")
_METERS: dict[str, Callable[..., Any]] = {
    "budget read": lambda value: get_budget().read(value),
    "budget iterate": lambda value: get_budget().iterate(value),
    "budget spend": lambda units: get_budget().spend(units),
    "budget concat": _concat,
}


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates are rendered by `budget.render_within`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(
        self,
        extensions: Sequence[type[jinja2.ext.Extension]],
        filters: Mapping[str, Callable[..., Any]],
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        """Take the filters and functions that templates get beside Jinja's own."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer computes constants, of any size
            # As it takes the context, Jinja finalizes, and so computes, nothing in advance.
            finalize=_finalize,
            extensions=extensions,
        )
        del self.globals["lipsum"]
        self.globals["namespace"] = BoundedNamespace
        self.globals |= functions
        self._functions = frozenset(map(id, self.globals.values()))
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters |= filters
        for name, function in self.filters.items():
            read = Budget.iterate if name in _ITERATING else Budget.read
            self.filters[name] = _meter(function, _FILTER_CHECKS.get(name), read)
        for name, function in self.tests.items():
            self.tests[name] = _meter(function)
        self.filters |= _METERS

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Metering().visit(source), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`; Jinja calls this for every arithmetic operator."""
        budget = get_budget()
        budget.read(left)
        budget.read(right)
        check_binop(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, macro or method; Jinja calls this for every `f(...)`."""
        budget = get_budget()
        budget.spend(STEP_UNITS)
        if getattr(__obj, "__name__", "") == "join":
            args = tuple(map(_make_sized, args))
        shown = {name: value for name, value in kwargs.items() if name not in _HIDDEN_ARGUMENTS}
        for value in (*args, *shown.values()):
            budget.read(value)
        __self._check_call(__obj, args, shown)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def _check_call(self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse to call what templates may not call."""
        if id(called) in self._functions or isinstance(
            called, (Macro, LoopContext, Cycler, Joiner, Undefined)
        ):
            for value in args if called is self.globals["range"] else ():
                check_int(value)  # huge ones can be chosen to have all the same hash
            return
        # The sandbox's own str.format stands for the one it wraps.
        method = getattr(called, "__wrapped__", called)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (LoopContext, Cycler)):
            return
        name = getattr(method, "__name__", "")
        for kind, methods in _METHODS:
            if isinstance(owner, kind) and name in methods:
                get_budget().read(owner)
                for value in args:
                    check_int(value)
                if check := methods[name]:
                    check(owner, *args, **kwargs)
                return
        kind = type(called if owner is None else owner).__name__
        raise TemplateLimitError(f"it calls {name or 'a value'} of type {kind}")


def _meter(
    function: Callable[..., Any],
    check: Callable[..., None] | None = None,
    read: Callable[[Budget, Any], Any] = Budget.read,
) -> Callable[..., Any]:
    """A filter or test that pays for what it reads and makes."""
    num_hidden = int(hasattr(function, "jinja_pass_arg"))  # the context or the environment

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = get_budget()
        budget.spend(STEP_UNITS)
        hidden, shown = args[:num_hidden], args[num_hidden:]
        if check is _check_join_filter:
            shown = (*map(_make_sized, shown[:1]), *shown[1:])
        for value in shown[:1]:
            read(budget, value)
        for value in (*shown[1:], *kwargs.values()):
            budget.read(value)
            check_int(value)
            if read is Budget.iterate and check is not _check_join_filter:
                _check_attribute(value)
        if check is not None:
            check(*shown, **kwargs)
        made = budget.made(function(*hidden, *shown, **kwargs))
        return charge(made) if isinstance(made, Iterator) else made

    return metered


def _make_sized(items: Any) -> Any:
    """An iterator as a list; its items were paid for with their source."""
    return list(items) if isinstance(items, Iterator) else items


@jinja2.pass_context
def _finalize(_: Context, value: Any) -> str:
    """The text that `{{ }}` prints."""
    return get_budget().write(value)


def _check_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise TemplateLimitError("it sums up values that are no numbers")


def _check_attribute(value: Any) -> None:
    """Refuse a path to an attribute that takes long to follow, for every item."""
    if isinstance(value, str):
        check_int(len(value), MAX_FIELD_WIDTH)


def _check_join_filter(items: Any, d: Any = "", attribute: Any = None) -> None:
    _check_attribute(attribute)
    if isinstance(items, Sized):
        check_join(str(d), items)


def _check_round(_: Any, precision: Any = 0, method: Any = "common") -> None:
    check_int(precision, MAX_FIELD_WIDTH)


_ITERATING = frozenset(
    ("batch", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "select")
) | {"selectattr", "slice", "sort", "sum", "title", "unique", "wordcount"}
_FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "format": lambda text, *args, **kwargs: check_format(text, (*args, *kwargs.values())),
    "indent": check_indent,
    "join": _check_join_filter,
    "replace": check_replace,
    "round": _check_round,
    "sum": _check_sum,
    "trim": check_strip,
}
