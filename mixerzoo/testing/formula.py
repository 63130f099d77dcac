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
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """The value of a formula.

    Args:
        formula: numbers, names, ``+ − · / ( )``, ``⌈ ⌉``, ``⌊ ⌋``, ``min(…)`` and ``max(…)``.
        values: by name.

    Raises:
        MixerzooError: it is something else.
    """
    text = formula
    for letter, python in {"·": "*", "×": "*", "−": "-", "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")"}.items():
        text = text.replace(letter, python)
    try:
        return float(_value(ast.parse(text.strip(), mode="eval").body, values))
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
