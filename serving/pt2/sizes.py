"""A grammar of sizes: what PyTorch's exporter writes where it means a number of rows, and nothing else.

PyTorch evaluates such texts (sympy's `sympify` at load, `exec` at the first call). Here they are parsed and never evaluated.
A text is symbols (`s0`), numbers, `+ - * // / % **`, comparisons, `and`, `or`, `not`, `x if y else z`, and calls of the
functions on the list; a guard may also name an input's size, as in `L['x'].size()[0]`. What such a text could cost is
bounded too: its length, its depth, its powers, and how many terms it has when it is multiplied out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod

LONGEST, DEEPEST, TERMS, POWER = 20_000, 60, 4096, 8
LARGEST = 1 << 63
SYMBOL = re.compile(r"_?[a-z]{1,3}\d{1,5}")
#: A key of an input, as it stands in a guard and in the message of one that failed.
KEY = re.compile(r"[\w .:/-]{0,200}")
_TEXT = re.compile(r"[\x20-\x7e]*")
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?")
_NAMES = frozenset({"int_oo", "oo", "inf", "nan", "true", "false"})
#: sympy's and Python's words for the same things, and PyTorch's own functions of sizes.
_CALLED = (
    "Add Mul Mod Max Min Abs And Or Not Eq Ne Equality Unequality Lt Le Gt Ge Integer Rational Infinity NegativeInfinity "
    "IntInfinity NegativeIntInfinity BooleanTrue BooleanFalse StrictLessThan LessThan StrictGreaterThan GreaterThan Piecewise "
    "ExprCondPair FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv IntTrueDiv "
    "TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator floor ceiling "
    "OpaqueUnaryFn_sqrt min max abs int float bool round"
)
_FUNCTIONS = frozenset(_CALLED.split())
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
_SHIFTS = frozenset({"LShift", "RShift"})
_MATH = frozenset({"floor", "ceil", "trunc", "sqrt", "isnan", "inf"})
_OF_TENSORS = frozenset({"size", "stride", "storage_offset"})
_ASSUMED = frozenset({"positive", "integer", "nonnegative", "negative", "real", "finite", "zero", "nonzero"})
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or)
_COMPARED = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class NoSize(Exception):
    """A text that is not of the grammar."""


@lru_cache(maxsize=4096)
def is_size(text: str) -> bool:
    """Whether a text is a size."""
    return _holds(text, guard=False)


def is_guard(text: str) -> bool:
    """Whether a text is a condition on the sizes of the inputs."""
    return _holds(text, guard=True)


def _holds(text: str, *, guard: bool) -> bool:
    if len(text) > LONGEST or not _TEXT.fullmatch(text):
        return False
    try:
        _terms(ast.parse(text, mode="eval").body, guard, 0)
    except (NoSize, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _terms(node: ast.expr, guard: bool, depth: int) -> int:
    """How many terms it has when it is multiplied out. Raises NoSize for anything that is not of the grammar."""
    if depth > DEEPEST:
        raise NoSize
    terms = _of_node(node, guard, depth + 1)
    if terms > TERMS:
        raise NoSize
    return terms


def _of_node(node: ast.expr, guard: bool, depth: int) -> int:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return _leaf(isinstance(value, float) or abs(value) <= LARGEST)
        case ast.Name(id=name):
            return _leaf(SYMBOL.fullmatch(name) or name in _NAMES)
        case ast.UnaryOp(op=op, operand=inner):
            _leaf(isinstance(op, _OPERATORS))
            return _terms(inner, guard, depth)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(left, right, guard, depth)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _terms(left, guard, depth) * _terms(right, guard, depth)
        case ast.BinOp(op=op):
            _leaf(isinstance(op, _OPERATORS))
            return sum(_terms(part, guard, depth) for part in (node.left, node.right))
        case ast.Call():
            return _call(node, guard, depth)
        case ast.Subscript() | ast.Attribute():
            return _leaf(guard and _of_input(node))
    return sum(_terms(part, guard, depth) for part in _parts(node))


def _leaf(fits: object) -> int:
    if not fits:
        raise NoSize
    return 1


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """What a condition is made of."""
    match node:
        case ast.BoolOp(values=values):
            yield from values
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, _COMPARED) for op in ops):
            yield from (left, *others)
        case ast.IfExp(test=test, body=body, orelse=other):
            yield from (test, body, other)
        case ast.Tuple(elts=parts):  # a case of Piecewise
            yield from parts
        case _:
            raise NoSize


def _power(base: ast.expr, exponent: ast.expr, guard: bool, depth: int) -> int:
    """Powers by a small number only, of what has none in it."""
    small = _small(exponent)
    _leaf(-POWER <= small <= POWER and not any(_raises(part) for part in ast.walk(base)))
    return int(_terms(base, guard, depth) ** abs(small))


def _raises(part: ast.AST) -> bool:
    named = isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in _POWERS | _SHIFTS
    return named or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow))


def _small(node: ast.expr) -> float:
    """The number that an exponent or a shift is. Raises NoSize if it is none."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_small(inner)
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _small(inner)
        case ast.Constant(value=int() | float() as value):
            return value
    raise NoSize


def _call(node: ast.Call, guard: bool, depth: int) -> int:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=keywords):
            told = all(k.arg in _ASSUMED and isinstance(k.value, ast.Constant) for k in keywords)
            return _leaf(SYMBOL.fullmatch(name) and told)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as number)], keywords=keywords):
            told = all(k.arg == "precision" and 0 < _small(k.value) <= 64 for k in keywords)
            return _leaf(_NUMBER.fullmatch(number) and told)
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if name in _POWERS:
            return _power(base, exponent, guard, depth)
        case ast.Call(func=ast.Name(id=name), args=[base, by], keywords=[]) if name in _SHIFTS:
            _leaf(0 <= _small(by) <= 62)
            return _terms(base, guard, depth)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS and len(parts) <= 256:
            return _joined(name)([_terms(part, guard, depth) for part in parts])
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr=name), args=[part], keywords=[]) if (
            name in _MATH
        ):
            return _terms(part, guard, depth)
        case ast.Call():
            return _leaf(guard and _of_input(node))


def _joined(name: str) -> Callable[[list[int]], int]:
    return prod if name == "Mul" else sum


def _of_input(node: ast.expr) -> bool:
    """Whether it is a part of an input: `L['x']`, `L['x'][0]`, `L['x'].size()[0]`, `L['x'].storage_offset()`; or `math.inf`."""
    match node:
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str() as key)):
            return KEY.fullmatch(key) is not None
        case ast.Subscript(value=inner, slice=ast.Constant(value=int() | str() as key)):
            return (isinstance(key, int) or KEY.fullmatch(key) is not None) and _of_input(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr=name), args=[], keywords=[]):
            return name in _OF_TENSORS and _of_input(inner)
        case ast.Attribute(value=ast.Name(id="math"), attr="inf"):
            return True
    return False
