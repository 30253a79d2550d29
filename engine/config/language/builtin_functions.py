"""Built-in functions that a config may call, each checked against limits."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.config.language.limits import (
    INTEGER_BITS,
    VALUE_WEIGHT,
    ConfigValueError,
    check_repeat,
)
from engine.config.language.operations import formatted, is_plain, kind, shown, truth


def _range(*bounds: Any) -> object:
    span = range(*bounds)
    check_repeat(1, len(span), VALUE_WEIGHT)
    return list(span)


def _round(number: Any, digits: Any = None) -> object:
    # round(1, -10**9) would compute 10**10**9
    if isinstance(digits, int) and abs(digits) > INTEGER_BITS:
        raise ConfigValueError(f"cannot round to {shown(digits)} digits")
    return round(number, digits)


def _sum(numbers: Any, start: Any = 0) -> object:
    # only numbers: the sum of lists is quadratic
    if not isinstance(numbers, list | tuple):
        raise TypeError
    if not all(isinstance(item, int | float) for item in (*numbers, start)):
        raise TypeError
    return sum(numbers, start)


def _text(value: object = "") -> str:
    return formatted(value, "", "")


def _bool(value: object = False) -> bool:
    return truth(value)


FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "abs": abs,
    "bool": _bool,
    "float": float,
    "int": int,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "range": _range,
    "round": _round,
    "str": _text,
    "sum": _sum,
    "tuple": tuple,
}


def call(name: str, args: list[object]) -> object:
    """Call one of FUNCTIONS."""
    for item in args:
        if not is_plain(item):
            raise ConfigValueError(f"{name}() cannot take {kind(item)}")
    try:
        return FUNCTIONS[name](*args)
    except TypeError:
        raise ConfigValueError(f"{name}() cannot take ({', '.join(map(kind, args))})") from None
    except (ValueError, OverflowError) as error:
        raise ConfigValueError(f"{name}(): {str(error)[:80]}") from None
