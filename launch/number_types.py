"""Types of numeric command-line arguments, for argparse."""

from __future__ import annotations

import argparse
import math
import re
from contextlib import suppress

from engine.formatting import BYTE_UNITS

_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([KMGTP]i?B)")
_DECIMAL_UNITS = {f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGTP", start=1)}


def not_negative(text: str) -> int:
    """Parse an integer of 0 or more (type for argparse)."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """Parse an integer of 1 or more (type for argparse)."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if number >= least:
            return number
    raise argparse.ArgumentTypeError(f"{text} is not {least} or more")


def above_zero(text: str) -> float:
    """Parse a finite number above 0 (type for argparse)."""
    with suppress(ValueError):
        number = float(text)
        if 0 < number < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text} is not a number above 0")


def byte_size(text: str) -> int:
    """Parse a size such as '80GiB' (2**30 bytes) or '80GB' (10**9 bytes) (type for argparse)."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * (BYTE_UNITS | _DECIMAL_UNITS)[match[2]] if match else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 80GiB or 24GB")
    return int(number)


def share(text: str) -> float:
    """Parse a number in (0, 1] (type for argparse)."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return number
