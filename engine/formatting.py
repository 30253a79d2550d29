"""Formats numbers for messages and tables: plurals, bytes, counts, durations, ranks, layers. No
torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BYTE_UNITS = {"B": 1} | {
    f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGTP", start=1)
}


def plural(number: int, noun: str, ending: str = "s") -> str:
    """Format a number and a noun: '1 GPU', '2 GPUs'; with ``ending`` 'es': '2 processes'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{ending}"


def format_bytes(number: float) -> str:
    """Format a number of bytes with a unit and up to three digits: '1.25 GiB', '80 GiB', '12 B';
    from 1000 to 1023 with four digits: '1020 MiB'."""
    unit, size = byte_unit(number)
    if round(number / size) >= 1024:  # 1023.9 KiB is 1 MiB
        unit, size = byte_unit(1024 * size)
    number /= size
    return f"{number:.0f} {unit}" if number >= 999.5 else f"{number:.3g} {unit}"


def byte_unit(number: float) -> tuple[str, int]:
    """Return the largest unit that is not more than ``number`` bytes, and its size in bytes."""
    fitting = [(unit, size) for unit, size in BYTE_UNITS.items() if size <= number]
    return fitting[-1] if fitting else ("B", 1)


def format_count(number: float) -> str:
    """Format a number with three digits, a space and an SI prefix: '124 M'; below 1000: '12 '."""
    for prefix in ("", "K", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} P"


def format_layers(ranges: Iterable[range]) -> str:
    """Format the layers of a rank: '0-5', or '0-2 6-8' if the rank has several chunks."""
    return " ".join(
        f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else f"{layers.start}"
        for layers in ranges
    )


def format_ranks(numbers: Sequence[int], limit: int = 8) -> str:
    """Format ranks: ``rank 3``, ``ranks 0, 1 and 5``; ranks after the first ``limit`` are counted
    only."""
    if len(numbers) > limit:
        return f"ranks {', '.join(map(str, numbers[:limit]))} and {len(numbers) - limit} more"
    *first, last = map(str, numbers)
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"


def format_duration(seconds: float | None) -> str:
    """Format a duration: '4:05', '1:04:05', or '1d 04h' from one day on; '-' for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
