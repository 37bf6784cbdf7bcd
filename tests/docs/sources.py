"""Facts of Python sources that tests of the program's shape and prose look at; a file is parsed once in each
process.

Facts are kept instead of trees: the nodes of all trees are two million objects, through which every search
for garbage of a run would go.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

#: Attributes of a statement, a handler or a case that hold statements.
_BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True, kw_only=True)
class ClassShape:
    """The bases of a class, its public methods, and the values that its constructor takes by position.

    *fields* are those of a dataclass, and 0 for another class; *arguments* are those of its own ``__init__``,
    without ``self``.
    """

    name: str
    bases: tuple[str, ...]
    public_methods: int
    fields: int
    arguments: int


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The classes of a module at any depth, its docstrings with their lines, and the modules and names that
    it imports.
    """

    classes: tuple[ClassShape, ...]
    docstrings: tuple[tuple[int, str], ...]
    imports: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Expressions:
    """The string constants of a module, and for each function in it the names that it calls, with those inside it."""

    strings: frozenset[str]
    calls: tuple[tuple[str, str], ...]


@cache
def outline(path: Path) -> Outline:
    """Return the outline of *path*."""
    return parse_outline(path.read_text())


def parse_outline(text: str) -> Outline:
    """Return the outline of a module with the source *text*."""
    classes: list[ClassShape] = []
    docstrings: list[tuple[int, str]] = []
    imports: set[str] = set()
    for node in statements(ast.parse(text)):
        match node:
            case ast.ClassDef():
                classes.append(_class_shape(node))
                docstrings += _docstrings(node)
            case ast.Module() | ast.FunctionDef() | ast.AsyncFunctionDef():
                docstrings += _docstrings(node)
            case ast.Import() | ast.ImportFrom():
                imports |= _imported(node)
    return Outline(classes=tuple(classes), docstrings=tuple(docstrings), imports=frozenset(imports))


@cache
def expressions(path: Path) -> Expressions:
    """Return the strings and calls of *path*."""
    strings: set[str] = set()
    calls: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            calls |= {(node.name, name) for name in _called(node)}
    return Expressions(strings=frozenset(strings), calls=tuple(sorted(calls)))


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield *tree*, each statement in it at any depth, and the handlers and cases between them; expressions
    have none.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in _BLOCKS:
            block = getattr(node, name, None)
            if isinstance(block, list):  # the body of a lambda is an expression
                waiting.extend(block)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[tuple[int, str]]:
    # A string below a constant documents it, as one below a signature documents the function.
    for item in node.body:
        if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
            text = item.value.value
            if isinstance(text, str):
                yield item.lineno, inspect.cleandoc(text)


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not node.module:
        return set()
    return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}


def _called(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", ""))


def _class_shape(node: ast.ClassDef) -> ClassShape:
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    return ClassShape(
        name=node.name,
        bases=tuple(ast.unparse(base) for base in node.bases),
        public_methods=sum(not function.name.startswith("_") for function in functions),
        fields=_positional_fields(node),
        arguments=_positional_arguments(functions),
    )


def _positional_fields(node: ast.ClassDef) -> int:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if not any("dataclass" in text for text in decorators) or any(
        "kw_only=True" in text for text in decorators
    ):
        return 0
    count = 0
    for item in node.body:
        if not isinstance(item, ast.AnnAssign):
            continue
        kind, value = ast.unparse(item.annotation), ast.unparse(item.value) if item.value else ""
        if kind == "KW_ONLY":
            break
        count += not ("ClassVar" in kind or "init=False" in value or "kw_only=True" in value)
    return count


def _positional_arguments(functions: list[ast.FunctionDef | ast.AsyncFunctionDef]) -> int:
    for function in functions:
        if function.name == "__init__":
            return len(function.args.posonlyargs) + len(function.args.args) - 1
    return 0
