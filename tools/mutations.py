"""Mutants of a mixer's module: one expression or statement changed each.

The functions below each yield nodes to put in the place of one node.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mixerzoo import Mixer


@dataclass(frozen=True)
class Mutant:
    """One change to one module.

    Attributes:
        module: of `mixerzoo_plugins`.
        line: number, from 1.
        function: in which it lies.
        text: of the line, stripped.
        change: ``old → new``.
        source: of the whole mutated module.
    """

    module: str
    line: int
    function: str
    text: str
    change: str
    source: str

    @property
    def key(self) -> tuple[str, str, str]:
        """As in mutation_survivors.yaml."""
        return (self.module, self.text, self.change)


_OPERATORS: dict[type[ast.AST], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
}
_COMPARISONS: dict[type[ast.AST], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
#: Called names and what is called instead; None: the object or first argument itself.
_CALLS: dict[str, tuple[str | None, ...]] = {
    "softmax": (None,),
    "rsqrt": ("sqrt", None),
    "sqrt": (None,),
    "square": ("abs", None),
    "mean": ("sum",),
    "sum": ("mean",),
    "max": ("min",),
    "min": ("max",),
    "zeros_": ("ones_",),
    "ones_": ("zeros_",),
    "to": (None,),
    "addcmul": ("add",),
    "sorted": (None,),
    "unsqueeze": (None,),
    "any": ("all",),
}
_NAMESPACES = ("torch", "math", "nn.init")
_COMMUTATIVE = ("max", "min", "promote_types", "transpose")


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What a node can be mutated to."""
    yield from _of_values(node)
    yield from _of_structure(node)


def _of_values(node: ast.AST) -> Iterator[ast.AST]:
    """Other operators, comparisons and numbers."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            for other in _OPERATORS.get(type(op), ()):
                yield ast.BinOp(left, other(), right)
            if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitOr):
                yield left
            if isinstance(op, ast.Add | ast.Mult | ast.BitOr):
                yield right
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
            yield from values
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            for comparison in _COMPARISONS.get(type(op), ()):
                yield ast.Compare(left, [comparison()], [right])
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            yield from (ast.Constant(0), ast.UnaryOp(ast.USub(), ast.Constant(value + 1)))
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))


def _of_structure(node: ast.AST) -> Iterator[ast.AST]:
    """Other branches, calls and parts."""
    match node:
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
            yield from (body, orelse)
        case ast.Call():
            yield from _calls(node)
        case ast.comprehension(target=target, iter=iterated, ifs=[condition, *_]):
            yield ast.comprehension(target, iterated, [ast.UnaryOp(ast.Not(), condition)], 0)
            yield ast.comprehension(target, iterated, [], 0)
        case ast.Tuple(elts=elements, ctx=ast.Load()) if len(elements) > 1:
            for i in range(len(elements)):
                yield ast.Tuple([*elements[:i], *elements[i + 1 :]], ast.Load())
        case ast.Subscript(value=value, slice=ast.Slice()):
            yield value
        case ast.If(test=test, body=body, orelse=orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
            yield ast.If(ast.Constant(False), body, orelse)
        case ast.Expr(value=ast.Call()) | ast.Assign():
            yield ast.Pass()


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    function, arguments = node.func, node.args
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    for other in _CALLS.get(name, ()):
        of_module = not isinstance(function, ast.Attribute) or ast.unparse(function.value) in _NAMESPACES
        if other is None:
            yield arguments[0] if of_module else function.value  # type: ignore[union-attr]
            continue
        renamed = copy.deepcopy(function)
        setattr(renamed, "attr" if isinstance(function, ast.Attribute) else "id", other)
        keep = arguments[:2] if other == "add" else arguments
        yield ast.Call(renamed, keep, node.keywords)
    plain = [i for i, argument in enumerate(arguments) if not isinstance(argument, ast.Starred)]
    for one, two in pairwise(plain) if name not in _COMMUTATIVE else ():
        if name == "addcmul" and one == 1:
            # The two factors.
            continue
        swapped = list(arguments)
        swapped[one], swapped[two] = swapped[two], swapped[one]
        yield ast.Call(function, swapped, node.keywords)
    if name == "range" and len(arguments) > 1:
        yield ast.Call(function, arguments[:-1], node.keywords)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what it is made of, but for what is not mutated."""
    if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _within(node.value)
        return
    yield node
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.keyword) and node.arg in ("strict", "start") and name == "value":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _within(child)


def _mutated_parts(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """What may be mutated, and in which function: bodies, but for asserts, annotations and docstrings."""

    def functions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from functions(child)
            elif isinstance(child, ast.FunctionDef) and child.name != "mixerzoo_mixers":
                for statement in child.body:
                    yield from ((child.name, part) for part in _within(statement))

    yield from functions(tree)


def mutants(module: str) -> list[Mutant]:
    """All mutants of a built-in module, no two of the same source."""
    found = importlib.import_module(f"mixerzoo_plugins.{module}")
    assert found.__file__ is not None
    source = Path(found.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)
    made: dict[str, Mutant] = {}
    repeated: Counter[tuple[str, str]] = Counter()
    original = ast.unparse(tree)
    for function, node in _mutated_parts(tree):
        for new in replacements(node):
            mutated = ast.unparse(ast.fix_missing_locations(_Swap(node, new).visit(copy.copy(tree))))
            if mutated == original or mutated in made:
                continue
            where = getattr(node, "lineno", None) or node.target.lineno  # type: ignore[attr-defined]
            change = f"{_short(node)} → {_short(new)}"
            text = lines[where - 1].strip()
            repeated[text, change] += 1
            if repeated[text, change] > 1:
                change += f" ({repeated[text, change]})"
            made[mutated] = Mutant(module, where, function, text, change, mutated)
    return list(made.values())


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self._old:
            return self._new
        node = copy.copy(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [self.visit(child) if isinstance(child, ast.AST) else child for child in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(node).split())


def load(mutant: Mutant) -> type[Mixer]:
    """The mixer of a mutated module, which from now on stands in this process in place of the original."""
    plugin, *part = mutant.module.split(".")
    top = f"mixerzoo_plugins.{plugin}"
    mutated = f"mixerzoo_plugins.{mutant.module}"
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Mutated(mutated, mutant.source))
    offered: list[type[Mixer]] = importlib.import_module(top).mixerzoo_mixers()
    # Of several mixers of one folder, the one that a file is named after, else the first, which has them all in it.
    named = [mixer for mixer in offered if mixer.name in part]
    return (named or offered)[0]


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, of a source given."""

    def __init__(self, name: str, source: str) -> None:
        self._name, self._source = name, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self, origin="mutant") if fullname == self._name else None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self._source, "mutant", "exec"), module.__dict__)
