"""Evaluates the formulas of cards, such as ``2·L·G·d·e`` or ``2·⌈L/group⌉·G·d·e``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from mixerzoo.errors import MixerzooError

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}

#: Writing of cards → that of Python.
_SIGNS = {
    "·": "*", "×": "*", "−": "-", "²": "**2", "³": "**3", "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")",
}  # fmt: skip
#: What a formula is made of; anything else is words.
_PARTS = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.Call, *_OPERATORS)


def is_formula(text: str) -> bool:
    """Whether a text is a formula throughout, of letters known or not: ``2·L`` or ``banana``, not ``2·L or so``."""
    try:
        return all(isinstance(node, _PARTS) for node in ast.walk(_parsed(text)))
    except SyntaxError:
        return False


def names_in(formula: str) -> set[str]:
    """The names in a formula."""
    return {node.id for node in ast.walk(_parsed(formula)) if isinstance(node, ast.Name)}


def _parsed(formula: str) -> ast.Expression:
    for sign, python in _SIGNS.items():
        formula = formula.replace(sign, python)
    return ast.parse(formula.strip(), mode="eval")


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """The value of a formula.

    Args:
        formula: numbers, names, ``+ − · / ( ) ² ³``, ``⌈ ⌉``, ``⌊ ⌋``, ``min(…)`` and ``max(…)``.
        values: by name.

    Raises:
        MixerzooError: it is something else.
    """
    try:
        return float(_value(_parsed(formula).body, values))
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise MixerzooError(f"{formula!r} is not a formula of {', '.join(values)}: {error!r}") from error


def _value(node: ast.AST, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*(_value(argument, values) for argument in node.args))
    raise TypeError(f"{ast.dump(node)} is not allowed")
