"""Where a worker can be struck: at each await of a module, read from its syntax tree, never from a list.

`instrumented` lets the code that lies in memory ask a `Points` at each of them. The modules themselves, and who has
imported what from them, stay as they are.
"""

import ast
import inspect
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

AT, AROUND, EACH = "struck_at", "struck_around", "struck_each"
"""What the changed code calls for `await`, `async with` and `async for`."""


class Points(Protocol):
    """What is asked at each site."""

    def at(self, site: str, awaitable: Any) -> Any:
        """Await `awaitable`, or not."""
        ...

    def around(self, site: str, manager: Any) -> Any:
        """An async context manager in the place of `manager`; its two awaits are `site.enter` and `site.exit`."""
        ...

    def each(self, site: str, iterable: Any) -> Any:
        """An async iterable in the place of `iterable`."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """One await. Found by structure, so that it keeps its name when lines move."""

    name: str
    """module:function:number, from 0 in each function; `.enter` and `.exit` of an `async with`."""
    source: str
    """For people."""


class _Asking(ast.NodeTransformer):
    """Puts a call around each await of a module."""

    def __init__(self, module: str) -> None:
        self.sites: list[Site] = []
        self._module = module
        self._within: list[str] = []
        self._count: Counter[str] = Counter()

    def _nested(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _nested  # noqa: N815 - ast's names

    def visit_Await(self, node: ast.Await) -> ast.AST:
        site = self._site(ast.unparse(node))
        self.generic_visit(node)
        node.value = _call(AT, site, node.value)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        for item in node.items:
            site = self._site(f"async with {ast.unparse(item.context_expr)}", ".enter", ".exit")
            item.context_expr = _call(AROUND, site, item.context_expr)
        self.generic_visit(node)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        site = self._site(f"async for … in {ast.unparse(node.iter)}")
        node.iter = _call(EACH, site, node.iter)
        self.generic_visit(node)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        if node.is_async:
            node.iter = _call(EACH, self._site(f"async for … in {ast.unparse(node.iter)}"), node.iter)
        self.generic_visit(node)
        return node

    def _site(self, source: str, *parts: str) -> str:
        function = ".".join(self._within)
        name = f"{self._module}:{function}:{self._count[function]}"
        self._count[function] += 1
        self.sites += [Site(name + part, source) for part in parts or ("",)]
        return name


def _call(name: str, site: str, value: ast.expr) -> ast.expr:
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [ast.Constant(site), value], []), value)


def sites_of(module: ModuleType) -> list[Site]:
    """All of a module."""
    return _changed(module)[1]


def _changed(module: ModuleType) -> tuple[ast.AST, list[Site]]:
    asking = _Asking(module.__name__.removeprefix("worker."))
    tree = asking.visit(ast.parse(inspect.getsource(module)))
    return ast.fix_missing_locations(tree), asking.sites


@contextmanager
def instrumented(modules: Iterable[ModuleType], points: Points) -> Generator[None]:
    """Let each await of `modules` ask `points` until the block ends."""
    calls = {AT: points.at, AROUND: points.around, EACH: points.each}
    before: list[tuple[FunctionType, CodeType]] = []
    changed: list[ModuleType] = []
    try:
        for module in modules:
            tree, sites = _changed(module)
            codes = dict(_codes(compile(tree, str(module.__file__), "exec")))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]  # an AST it is
            functions = {_place(function.__code__): function for function in _functions(vars(module), module.__name__)}
            for place, function in functions.items():
                before.append((function, function.__code__))
                function.__code__ = codes[place]
            vars(module).update(calls)
            changed.append(module)
            unasked = {site.name.split(":")[1] for site in sites} - {_top(place) for place in functions}
            missed = {name for name in unasked if not any(name.startswith(f"{_top(place)}.") for place in functions)}
            if missed:
                raise AssertionError(f"{module.__name__}: {sorted(missed)} can't be reached; teach _functions about it")
        yield
    finally:
        for function, code in before:
            function.__code__ = code
        for module in changed:
            for name in calls:
                del vars(module)[name]


Place = tuple[str, int]
"""A code's qualified name and first line."""


def _place(code: CodeType) -> Place:
    return code.co_qualname, code.co_firstlineno


def _top(place: Place) -> str:
    return place[0].replace(".<locals>", "")


def _codes(code: CodeType) -> Iterator[tuple[Place, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield _place(inner), inner
            yield from _codes(inner)


def _functions(names: dict[str, Any], module: str) -> Iterator[FunctionType]:
    """Those written in a module or a class of it, below whatever decorates them."""
    for value in list(names.values()):
        bare = _bare(value)
        if getattr(bare, "__module__", None) != module:
            continue
        if isinstance(bare, FunctionType) and not bare.__code__.co_filename.startswith("<"):
            yield bare
        elif isinstance(bare, type):
            yield from _functions(dict(vars(bare)), module)


def _bare(value: Any) -> Any:
    of: dict[type, str] = {property: "fget", cached_property: "func", classmethod: "__func__", staticmethod: "__func__"}
    bare = getattr(value, of[type(value)]) if type(value) in of else value
    while hasattr(bare, "__wrapped__"):
        bare = bare.__wrapped__
    return bare
