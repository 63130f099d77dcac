"""Mutates the built-in mixers and counts the mutants that the conformance kit kills.

``python tools/mutate_mixers.py [--mixer NAME] [--jobs 2]`` is a script, not a test. A mutant is a built-in
mixer's module with one expression or statement changed, run under a module name of its own. The judge is the kit, in
its quick profile, with the mixer's reference from tests/support/naive: clauses "Against its reference" first, as they
kill most for their time, then all the others until one fails.

A second figure is that of the kit alone, without a reference. It says how many mutants are unsound, or cost other
than they say; what computes another method soundly, only a reference can tell. ``compiles`` counts for the first
figure only, where nothing else kills: it takes too long.

Cards, options' descriptions, annotations and docstrings are not mutated. Survivors are printed with the place
and the change; those explained in `SURVIVORS` are told apart from those that are not.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from mixerzoo import Mixer, load_registry
from mixerzoo.testing import Check, Reference, checks_for, run_check

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import zoo

MODULES = ("residual", "denseformer", "attn_res", "depth_attention")
#: Seconds that a mutant may take; one that takes longer is killed (mostly: it loops).
TIMEOUT = 300.0

_HELD = "tuple(j for j in range(step + 1) if last_reader.get(j, -1) > step) for step in range(shape.num_steps)"
_NAMED = 'name: f"weights.{int(name.removeprefix(prefix)) + 1}" for name in alphas if list(tensors[name]) != [0]'
_DEFINES = 'return super().defines(hook) and (hook != "plan" or self.keeps_weights)'
_RUNNING = "running = done > 0 and done not in self.closing"

#: Why nothing can tell a mutant from the original → (module, line of the original, changes).
_REASONS: dict[str, list[tuple[str, str, *tuple[str, ...]]]] = {
    "equivalent: a product does not depend on the order of its factors": [
        (
            "denseformer",
            "x = _weighted_sum(self.weights[str(t)], [outputs[j] for j in self.averaged[t]])",
            "_weighted_sum(self.weights[str(t)], [outputs[j] for j in self.averaged[t]]) → "
            "_weighted_sum([outputs[j] for j in self.averaged[t]], self.weights[str(t)])",
        ),
        (
            "denseformer",
            "for weight, term in zip(weights[1:], terms[1:], strict=True):",
            "zip(weights[1:], terms[1:], strict=True) → zip(terms[1:], weights[1:], strict=True)",
        ),
        (
            "denseformer",
            "total = torch.addcmul(total, weight, term)",
            "torch.addcmul(total, weight, term) → torch.addcmul(total, term, weight)",
        ),
        (
            "attn_res",
            "mixed = torch.addcmul(mixed, weights[..., i : i + 1], source.value)",
            "torch.addcmul(mixed, weights[..., i:i + 1], source.value) → "
            "torch.addcmul(mixed, source.value, weights[..., i:i + 1])",
        ),
        (
            "depth_attention",
            "for weight, term in zip(others, terms[1:], strict=True):",
            "zip(others, terms[1:], strict=True) → zip(terms[1:], others, strict=True)",
        ),
        (
            "depth_attention",
            "mixed = torch.addcmul(mixed, weight, term)",
            "torch.addcmul(mixed, weight, term) → torch.addcmul(mixed, term, weight)",
        ),
    ],
    "equivalent: there are two at least, and all have one dtype and one shape": [
        ("attn_res", "exact = sources[0].inverse_rms.dtype", "0 → 1", "0 → -1"),
        (
            "attn_res",
            "weights = torch.stack(logits, dim=-1).softmax(-1).to(sources[0].value.dtype)",
            "0 → 1",
            "0 → -1",
        ),
        ("depth_attention", "mean_q = q.unflatten(1, (keys[0].size(1), -1)).mean(2, dtype=exact)", "0 → 1", "0 → -1"),
        (
            "depth_attention",
            "first, *others = weights.to(terms[-1].dtype).unsqueeze(-2).unbind(-1)",
            "-1 → 0",
            "-1 → -2",
        ),
    ],
    "equivalent: before the first sublayer there is one source": [("attn_res", "return sources[0].value", "0 → -1")],
    "equivalent: every peak is at least one hidden vector": [("attn_res", "peak = 0", "0 → 1", "0 → -1")],
    "equivalent: what it takes before the first sublayer or after it, it takes after the second as well": [
        (
            "attn_res",
            _RUNNING,
            "done > 0 and done not in self.closing → done not in self.closing",
            "done > 0 → done >= 0",
            "0 → 1",
            "0 → -1",
        )
    ],
    "equivalent: nothing is read after the last sublayer but what there is, closed or not": [
        ("attn_res", "return tuple(range(config.block_size, num_sublayers + 1, config.block_size))", "1 → 2")
    ],
    "equivalent: the number of sublayers is even": [
        ("attn_res", "for done in range(2, num_sublayers + 1, 2):", "1 → 2")
    ],
    "equivalent: the loader leaves out what is unused before it looks at names, and names that are not in the file": [
        ("denseformer", _NAMED, "for name in alphas if list(tensors[name]) != [0] → for name in alphas", "0 → -1"),
        (
            "attn_res",
            "for part, own in parts.items()",
            "for part, own in parts.items() if f'{aggregator}.{part}' in tensors → for part, own in parts.items()",
        ),
        (
            "attn_res",
            "return ReferenceReading(options, {n: own for n, own in names.items() if n not in unused}, unused)",
            "for n, own in names.items() if n not in unused → for n, own in names.items()",
        ),
    ],
    "a checkpoint whose mode names the method and that has none of its weights is refused either way, in other words": [
        (
            "denseformer",
            'if not alphas and config.get("baseline_mode") != "denseformer":',
            "not alphas and config.get('baseline_mode') != 'denseformer' → not alphas",
        ),
        (
            "attn_res",
            'if not any("attnres_" in name for name in tensors) and config.get("baseline_mode") != "attnres":',
            "not any(('attnres_' in name for name in tensors)) and config.get('baseline_mode') != 'attnres' → "
            "not any(('attnres_' in name for name in tensors))",
        ),
    ],
    "equivalent: a latent has three numbers at least": [
        ("depth_attention", "self.keeps_weights = shape.latent_dim > 0", "0 → 1")
    ],
    "equivalent: −2, −1 and 0 are none of them above a step": [("depth_attention", _HELD, "-1 → 0", "-1 → -2")],
    "a plan that it has not is only asked for by compositions, which would refuse another part's": [
        (
            "depth_attention",
            _DEFINES,
            "super().defines(hook) and (hook != 'plan' or self.keeps_weights) → super().defines(hook)",
        )
    ],
    "equivalent: after the last step nothing is held": [
        (
            "depth_attention",
            "before = self.held[site.step - 1] if site.step else ()",
            "self.held[site.step - 1] if site.step else () → self.held[site.step - 1]",
        )
    ],
    "equivalent: keys and values that are None are not looked at": [
        (
            "depth_attention",
            f"{thing}s = [source.{thing[0]} for source in sources if source.{thing[0]} is not None] + [{thing[0]}]",
            f"for source in sources if source.{thing[0]} is not None → for source in sources",
        )
        for thing in ("key", "value")
    ],
    "equivalent: strides below 1 and windows below 0 count as these": [
        (
            "depth_attention",
            'stride = config.get("depth_attention_stride", config.get("depth_softmax_stride", 1))',
            "1 → 0",
        ),
        (
            "depth_attention",
            'window = config.get("depth_attention_recent_window", config.get("depth_recent_window", 0))',
            "0 → -1",
        ),
    ],
    "equivalent: of these layers only those that have run count, and all runs of the layer itself do": [
        ("depth_attention", '"relative": range(layer - stride, -1, -stride),', "layer - stride → layer", "-1 → -2"),
        ("depth_attention", "layers = set(anchored) | set(range(max(0, layer - recent_window), layer))", "0 → -1"),
    ],
}
#: (module, line of the original, change) → why nothing can tell the mutant from the original.
SURVIVORS = {
    (module, text, change): reason
    for reason, places in _REASONS.items()
    for module, text, *changes in places
    for change in changes
}


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
        """As in `SURVIVORS`."""
        return (self.module, self.text, self.change)


@dataclass(frozen=True)
class Verdict:
    """Who killed a mutant.

    Attributes:
        mutant: which.
        by: name of the first check that killed it; empty for a survivor.
        alone: likewise without a reference.
        seconds: that it took.
    """

    mutant: Mutant
    by: str
    alone: str
    seconds: float


# Mutations: each function yields nodes to put in the place of one node.

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
_COMMUTATIVE = ("max", "min", "promote_types")


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
    """The mixer of a mutated module."""
    module = types.ModuleType(f"mutant_{mutant.module}")
    module.__file__ = f"{module.__name__}.py"
    sys.modules[module.__name__] = module
    exec(compile(mutant.source, module.__file__, "exec"), module.__dict__)
    mixer: type[Mixer] = module.mixerzoo_mixers()[0]
    return mixer


# The judge.


#: Methods that forwards do not call: the only checks that call them.
_ACCOUNTING = ("reference_accounts", "in_flight_bytes", "flops", "sources")
_SEEN_BY: dict[str, tuple[str, ...]] = {
    "in_flight_bytes": _ACCOUNTING,
    "flops_per_token": _ACCOUNTING,
    "sources": _ACCOUNTING,
    "read_reference": ("reference_checkpoints", "stock_checkpoints"),
}
#: What kills most comes first, after the clauses that need a reference.
_FIRST = ("in_flight_bytes", "neutral_settings", "every_parameter_learns", "flops", "sources", "cached_decoding")


def killer(mixer: type[Mixer], checks: list[Check], reference: Reference | None = None) -> str:
    """Name of the first check that fails, or an empty text."""
    for check in checks:
        if not run_check(check, mixer, reference=reference, shrink=False).ok:
            return check.name
    return ""


def judge(mutant: Mutant, answer: multiprocessing.connection.Connection) -> None:
    """Send who kills the mutant, with its reference and without."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the life of the process
    try:
        mixer = load(mutant)
    except Exception as error:  # noqa: BLE001  a mutant may fail in any way
        by = f"import ({type(error).__name__})"
        answer.send((by, by))
        return
    names = _SEEN_BY.get(mutant.function)
    checks = [check for check in checks_for(mixer) if names is None or check.name in names]
    held = killer(mixer, [check for check in checks if check.needs], zoo.reference(mutant.module))
    unaided = [check for check in checks if not check.needs and check.name != "compiles"]
    unaided.sort(key=lambda check: _FIRST.index(check.name) if check.name in _FIRST else len(_FIRST))
    alone = killer(mixer, unaided)
    compiles = [check for check in checks if check.name == "compiles"]
    answer.send((held or alone or killer(mixer, compiles), alone))


def judge_all(todo: list[Mutant], jobs: int, budget: float | None = None, log: Path | None = None) -> list[Verdict]:
    """Judge mutants, each in a process of its own.

    Args:
        todo: which.
        jobs: processes at a time.
        budget: seconds after which no further one is begun.
        log: gets a line for each as it is judged.
    """
    begun = time.monotonic()
    context = multiprocessing.get_context("fork")
    waiting, verdicts = list(reversed(todo)), []
    running: dict[Any, tuple[Mutant, Any, float]] = {}
    while waiting or running:
        if budget is not None and time.monotonic() - begun > budget:
            waiting.clear()
        while waiting and len(running) < jobs:
            ours, theirs = context.Pipe(duplex=False)
            mutant = waiting.pop()
            process = context.Process(target=judge, args=(mutant, theirs))
            process.start()
            theirs.close()
            running[ours] = (mutant, process, time.monotonic())
        done = multiprocessing.connection.wait(list(running), timeout=0.5)
        for pipe, (mutant, process, started) in list(running.items()):
            seconds = time.monotonic() - started
            if pipe in done:
                try:
                    by, alone = pipe.recv()
                except EOFError:
                    by = alone = "the process died"
            elif seconds > TIMEOUT:
                process.kill()
                by = alone = "timeout"
            else:
                continue
            process.join()
            del running[pipe]
            verdicts.append(Verdict(mutant, by, alone, seconds))
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"{mutant.module}.py:{mutant.line}: {mutant.change} | {by} | {alone} | {seconds:.1f}\n")
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)} / {len(todo)}", end="", file=sys.stderr, flush=True)
    return verdicts


def report(verdicts: list[Verdict]) -> str:
    """The table, then every survivor."""
    head = f"{'mixer':16} {'mutants':>7} {'killed':>12} {'without reference':>18} {'explained':>10} {'unexplained':>12}"
    lines = [head]
    for module in [*dict.fromkeys(v.mutant.module for v in verdicts), "all"]:
        of = [v for v in verdicts if module in ("all", v.mutant.module)]
        killed, alone = sum(bool(v.by) for v in of), sum(bool(v.alone) for v in of)
        explained = sum(not v.by and v.mutant.key in SURVIVORS for v in of)
        shares = [f"{n} ({n / len(of):.1%})" for n in (killed, alone)]
        lines.append(
            f"{module:16} {len(of):7} {shares[0]:>12} {shares[1]:>18} {explained:10} {len(of) - killed - explained:12}"
        )
    killers = Counter(v.by for v in verdicts if v.by).most_common()
    lines += ["", "killed by: " + ", ".join(f"{by} {number}" for by, number in killers)]
    for title, known in (("Unexplained survivors", False), ("Explained survivors", True)):
        survivors = [v for v in verdicts if not v.by and (v.mutant.key in SURVIVORS) == known]
        lines += ["", f"{title}: {len(survivors)}"]
        for verdict in sorted(survivors, key=lambda v: (v.mutant.module, v.mutant.line)):
            mutant = verdict.mutant
            lines.append(f"  {mutant.module}.py:{mutant.line}: {mutant.change}    [{mutant.text}]")
            if known:
                lines.append(f"      {SURVIVORS[mutant.key]}")
    stale = {v.mutant.key for v in verdicts if v.by} & SURVIVORS.keys()
    lines += [f"stale explanation: {key}" for key in sorted(stale)]
    return "\n".join(lines)


def main() -> int:
    """Returns 1 if there are unexplained survivors or less than 95 % are killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mixer", choices=MODULES, action="append")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="judge a random sample: as many mutants as this time allows")
    parser.add_argument("--log", type=Path, help="append a line for each mutant as it is judged")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    arguments = parser.parse_args()
    todo = [mutant for module in arguments.mixer or MODULES for mutant in mutants(module)]
    if arguments.seconds is not None:
        random.Random(0).shuffle(todo)
    if arguments.list:
        for mutant in todo:
            print(f"{mutant.module}.py:{mutant.line}: {mutant.change}")
        print(len(todo), Counter(m.module for m in todo))
        return 0
    load_registry()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    verdicts = judge_all(todo, arguments.jobs, arguments.seconds, arguments.log)
    print(report(verdicts))
    print(f"\n{time.monotonic() - started:.0f} s")
    killed = sum(bool(v.by) for v in verdicts) / len(verdicts)
    unexplained = sum(not v.by and v.mutant.key not in SURVIVORS for v in verdicts)
    return int(unexplained > 0 or killed < 0.95)


if __name__ == "__main__":
    sys.exit(main())
