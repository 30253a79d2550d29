"""Formatting of bytes, counts, durations, ranks and layers."""

from __future__ import annotations

import pytest

from engine.formatting import (
    format_bytes,
    format_count,
    format_duration,
    format_layers,
    format_ranks,
    plural,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (512 * 2**20, "512 MiB"),
        (9.5 * 2**30, "9.5 GiB"),
        (12.5 * 2**30, "12.5 GiB"),
        (80 * 2**30, "80 GiB"),
        (2**30 - 2**20, "1023 MiB"),
        (1.25 * 2**30, "1.25 GiB"),
        (2.5 * 2**40, "2.5 TiB"),
        (2**60, "1024 PiB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(number, text):
    assert format_bytes(number) == text


def test_counts_have_three_digits_and_a_prefix():
    assert [format_count(n) for n in (5, 999.6, 124_439_808, 1.75e11, 3.1e15)] == [
        "5 ",
        "1 K",
        "124 M",
        "175 G",
        "3.1 P",
    ]


def test_layers_are_ranges():
    assert format_layers([range(6)]) == "0-5"
    assert format_layers([range(3, 4)]) == "3"
    assert format_layers([range(2), range(8, 10)]) == "0-1 8-9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (245, "4:05"),
        (3845, "1:04:05"),
        (100 * 3600, "4d 04h"),
    ],
)
def test_durations_have_minutes_hours_or_days(seconds, text):
    assert format_duration(seconds) == text


def test_plural_has_an_ending_unless_the_number_is_1():
    assert [plural(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
    assert plural(2, "process", "es") == "2 processes"


def test_ranks_are_listed_up_to_a_limit() -> None:
    assert format_ranks([3]) == "rank 3"
    assert format_ranks([0, 1, 5]) == "ranks 0, 1 and 5"
    assert format_ranks(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"
