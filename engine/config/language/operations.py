"""Operators that a config may use, each checked against limits before it is computed.

All take values and return a value; they raise ConfigValueError with the reason.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.config.language.limits import (
    STRING_LENGTH,
    VALUE_WEIGHT,
    ConfigValueError,
    check_bits,
    check_repeat,
)
from engine.config.values import Symbol, TrackedDict

Binary = Callable[[Any, Any], object]
FORMAT_WIDTH_DIGITS = 3
SHOWN_LENGTH = 60


def kind(value: object) -> str:
    """Name the type of ``value`` for messages."""
    if isinstance(value, Symbol):
        return f"{shown(value)} (not imported, so its value is unknown)"
    return {TrackedDict: "dict", type(None): "None"}.get(type(value), type(value).__name__.lower())


def shown(value: object) -> str:
    """Format the start of ``value`` on one line, for messages."""
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def is_plain(value: object) -> bool:
    """Return whether ``value`` is known without executing external code."""
    return isinstance(value, None | bool | int | float | str | list | tuple | TrackedDict)


def truth(value: object) -> bool:
    """Return ``bool(value)``. Raises ConfigValueError for a symbol."""
    if not is_plain(value):
        raise ConfigValueError(f"the condition is {kind(value)}")
    return bool(value)


def _multiply(left: Any, right: Any) -> object:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            limit = STRING_LENGTH if isinstance(sequence, str) else VALUE_WEIGHT
            check_repeat(len(sequence), times, limit)
    return left * right


def _modulo(left: Any, right: Any) -> object:
    if isinstance(left, str):
        raise ConfigValueError("% cannot format strings in a config; write an f-string")
    return left % right


def _power(left: Any, right: Any) -> object:
    if isinstance(left, int) and isinstance(right, int) and right > 0 and abs(left) > 1:
        # left**right has more than (bits - 1) * right bits
        check_bits((left.bit_length() - 1) * right)
    return left**right


def _shift_left(left: Any, right: Any) -> object:
    if isinstance(left, int) and isinstance(right, int) and left:
        check_bits(left.bit_length() + right)
    return left << right


def _or(left: Any, right: Any) -> object:
    if isinstance(left, TrackedDict) and isinstance(right, TrackedDict):
        union = TrackedDict()
        union.update_from(left)
        union.update_from(right)
        return union
    return left | right


BINARY: Mapping[type[ast.operator], tuple[str, Binary]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", _multiply),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", _modulo),
    ast.Pow: ("**", _power),
    ast.LShift: ("<<", _shift_left),
    ast.RShift: (">>", operator.rshift),
    ast.BitOr: ("|", _or),
    ast.BitAnd: ("&", operator.and_),
    ast.BitXor: ("^", operator.xor),
}


def binary(kind_of: type[ast.operator], left: object, right: object) -> object:
    """Compute ``left operator right`` within the limits."""
    sign, compute = BINARY[kind_of]
    try:
        result = compute(left, right)
    except TypeError:
        raise ConfigValueError(
            f"unsupported operands of {sign}: {kind(left)} and {kind(right)}"
        ) from None
    except ZeroDivisionError:
        raise ConfigValueError("division by zero") from None
    except OverflowError:
        raise ConfigValueError("too large for a float") from None
    except ValueError as error:
        raise ConfigValueError(str(error)) from None
    if isinstance(result, complex):
        raise ConfigValueError("the result is a complex number")
    if isinstance(result, float) and not math.isfinite(result) and _finite(left, right):
        raise ConfigValueError("too large for a float")
    return result


def in_place(kind_of: type[ast.operator], left: object, right: object) -> object:
    """Compute ``left += right``: lists and dicts change in place, as in Python."""
    if kind_of is ast.Add and isinstance(left, list) and isinstance(right, list | tuple):
        left.extend(right)
        return left
    if kind_of is ast.BitOr and isinstance(left, TrackedDict) and isinstance(right, TrackedDict):
        left.update_from(right)
        return left
    result = binary(kind_of, left, right)
    if isinstance(left, list) and isinstance(result, list):
        left[:] = result
        return left
    return result


def _finite(*operands: object) -> bool:
    return all(math.isfinite(item) for item in operands if isinstance(item, float))


UNARY: Mapping[type[ast.unaryop], tuple[str, Callable[[Any], object]]] = {
    ast.UAdd: ("+", operator.pos),
    ast.USub: ("-", operator.neg),
    ast.Invert: ("~", operator.inv),
}


def unary(node: ast.unaryop, value: object) -> object:
    """Compute ``operator value``."""
    if isinstance(node, ast.Not):
        return not truth(value)
    sign, compute = UNARY[type(node)]
    try:
        return compute(value)
    except TypeError:
        raise ConfigValueError(f"unsupported operand of {sign}: {kind(value)}") from None


COMPARISONS: Mapping[type[ast.cmpop], tuple[str, Binary]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", lambda left, right: left in right),
    ast.NotIn: ("not in", lambda left, right: left not in right),
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
}


def compare(node: ast.cmpop, left: object, right: object) -> bool:
    """Compute a comparison such as ``left < right``.

    The value of a symbol is unknown. Only names can be compared with ``==``, as in ``AMP_TYPE.NAIVE
    == AMP_TYPE.TORCH``, and any value with ``is None``.
    """
    sign, compute = COMPARISONS[type(node)]
    identity = isinstance(node, ast.Is | ast.IsNot)
    if identity and not any(item is None or isinstance(item, bool) for item in (left, right)):
        raise ConfigValueError(f"'{sign}' compares with None, True or False; use == or !=")
    named = isinstance(node, ast.Eq | ast.NotEq) and _is_name(left) and _is_name(right)
    operands = [left, right, *(right if isinstance(right, list | tuple) else ())]
    for item in operands:
        if not is_plain(item) and not named and not (identity and _is_name(item)):
            raise ConfigValueError(f"unsupported operand of {sign}: {kind(item)}")
    try:
        return bool(compute(left, right))
    except TypeError:
        raise ConfigValueError(
            f"unsupported operands of {sign}: {kind(left)} and {kind(right)}"
        ) from None


def _is_name(value: object) -> bool:
    return isinstance(value, Symbol) and value.args is None


def index(base: object, key: Any) -> object:
    """Return ``base[key]`` of a dict, list, tuple or str; of a symbol, return a symbol."""
    if isinstance(base, Symbol):
        if isinstance(key, slice):
            raise ConfigValueError(f"no slice of {kind(base)}")
        return Symbol(f"{base}[{key!r}]")
    if not isinstance(base, str | list | tuple | TrackedDict):
        raise ConfigValueError(f"{kind(base)} cannot be indexed")
    try:
        return base[key]
    except KeyError:
        known = ", ".join(map(shown, list(base)[:10]))
        raise ConfigValueError(f"no key {shown(key)}; keys: {known or 'none'}") from None
    except IndexError:
        raise ConfigValueError(
            f"index {shown(key)} is out of range for {len(base)} items"
        ) from None
    except TypeError:
        raise ConfigValueError(f"{kind(base)} cannot be indexed by {kind(key)}") from None


def check_key(key: object) -> None:
    """Raise ConfigValueError unless ``key`` is text or a number of at most 64 bits.

    A file cannot choose such keys so that many hashes collide.
    """
    if isinstance(key, int) and key.bit_length() > 64:
        raise ConfigValueError("an integer of more than 64 bits cannot be a key")
    if not isinstance(key, None | bool | int | float | str):
        raise ConfigValueError(f"{kind(key)} cannot be a key")


CONVERSIONS: Mapping[str, Callable[[object], str]] = {"s": str, "r": repr, "a": ascii}


def formatted(value: object, conversion: str, spec: str) -> str:
    """Return ``f"{value!conversion:spec}"``."""
    if not is_plain(value):
        raise ConfigValueError(f"cannot format {kind(value)}")
    if re.search(rf"\d{{{FORMAT_WIDTH_DIGITS + 1}}}", spec):
        raise ConfigValueError(
            f"the format {spec[:20]!r} is wider than {10**FORMAT_WIDTH_DIGITS - 1}"
        )
    if conversion:
        value = CONVERSIONS[conversion](value)
    try:
        return format(value, spec)
    except TypeError:
        raise ConfigValueError(f"the format {spec[:20]!r} is invalid for {kind(value)}") from None
    except (ValueError, OverflowError) as error:
        raise ConfigValueError(f"the format {spec[:20]!r}: {error}") from None
