"""Sizes as people write and read them."""

from __future__ import annotations

import argparse

import pytest

from launch.validate.units import digits, format_bytes, format_layers, parse_bytes


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GiB", 80 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("1TB", 10**12),
        ("512KiB", 2**19),
    ],
)
def test_sizes_with_their_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    "text", ["", "80", "80G", "80gib", "GiB", "-1GiB", "0GiB", "1e3GiB", "nanGiB", "80GiBs"]
)
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size, such as 80GiB or 24GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (80 * 2**30, "80 GiB"),
        (2**30 - 2**20, "1,023 MiB"),
        (1.25 * 2**30, "1.25 GiB"),
        (2.5 * 2**40, "2.5 TiB"),
        (2**60, "1,024 PiB"),
    ],
)
def test_bytes_in_words(number, text):
    assert format_bytes(number) == text


def test_numbers_of_a_column():
    found = [digits(n) for n in (0, 0.004, 0.491, 9.99, 9.996, 12, 99.94, 99.96, 1020)]
    assert found == ["0", "0.00", "0.49", "9.99", "10.0", "12.0", "99.9", "100", "1,020"]


def test_layers_of_one_chunk_and_of_several():
    assert format_layers([range(6)]) == "0-5"
    assert format_layers([range(3, 4)]) == "3"
    assert format_layers([range(2), range(8, 10)]) == "0-1 8-9"
