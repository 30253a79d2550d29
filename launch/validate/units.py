"""Bytes, layers and counts in words: '80GiB' to a number, and numbers to what fits in a table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

UNITS = {f"{prefix}iB": 2 ** (10 * n) for n, prefix in enumerate("KMGTP", start=1)}
UNITS |= {f"{prefix}B": 10 ** (3 * n) for n, prefix in enumerate("KMGTP", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([KMGTP]i?B)")


def parse_bytes(text: str) -> int:
    """'80GiB' (2**30) or '80GB' (10**9) as bytes, for argparse."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * UNITS[match[2]] if match else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 80GiB or 24GB")
    return int(number)


def format_bytes(number: float) -> str:
    """Up to three digits and a unit: '1.25 GiB', '80 GiB', '1,020 MiB', '12 B'."""
    name, size = unit(number)
    number /= size
    return f"{number:,.0f} {name}" if number >= 999.5 else f"{number:.3g} {name}"


def unit(number: float) -> tuple[str, int]:
    """The unit that suits a number of bytes, and its size."""
    fitting = [(name, size) for name, size in UNITS.items() if "i" in name and size <= number]
    return max(fitting, key=lambda pair: pair[1], default=("B", 1))


def digits(number: float) -> str:
    """A number to three digits: '0.49', '12.0', '1,020'; '0' for none."""
    if number == 0 or abs(number) >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 9.995 else f"{number:.2f}"


def format_layers(ranges: Iterable[range]) -> str:
    """'0-5', or '0-2 6-8' for a rank of several chunks."""
    return " ".join(
        f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else f"{layers.start}"
        for layers in ranges
    )


def plural(number: int, noun: str, ending: str = "s") -> str:
    """'1 GPU', '2 GPUs'; '2 processes' with the ending 'es'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"
