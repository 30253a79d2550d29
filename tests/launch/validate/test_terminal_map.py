"""The terminal map, as printed."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from engine.layout import Layout
from launch.validate.terminal_map import terminal_map
from tests.launch.validate.support import LAYOUTS


def drawn(layout: Layout, layers: list[str], width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width).print(terminal_map(layout, layers, width))
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().rstrip().splitlines())


def test_data_pipeline_and_tensor_parallel_ranks_are_drawn_in_blocks():
    assert (
        drawn(LAYOUTS["1d"], ["0-5", "6-11"])
        == """\
data 0
╭── stage 0 ───╮ ╭─── stage 1 ───╮
│     t0  t1   │ │     t0  t1    │
│      0   1   │ │      2   3    │
╰─ layers 0-5 ─╯ ╰─ layers 6-11 ─╯

data 1
╭── stage 0 ───╮ ╭─── stage 1 ───╮
│     t0  t1   │ │     t0  t1    │
│      4   5   │ │      6   7    │
╰─ layers 0-5 ─╯ ╰─ layers 6-11 ─╯"""
    )


def test_cube_is_drawn_as_two_planes():
    assert (
        drawn(LAYOUTS["3d"], ["0-11"])
        == """\
╭──────── stage 0 ────────╮
│ c0  b0  b1   c1  b0  b1 │
│ a0   0   1   a0   4   5 │
│ a1   2   3   a1   6   7 │
╰────── layers 0-11 ──────╯"""
    )


def test_columns_are_aligned_with_their_names():
    head, *rows = drawn(LAYOUTS["2.5d, deep"], ["0-11"]).splitlines()[1:4]
    names = [match.end() for match in re.finditer(r"c\d", head)]
    assert len(names) == 6
    for row in rows:
        assert [match.end() for match in re.finditer(r" \d+", row)] == names


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_is_printed_once_and_no_line_is_truncated(name, width):
    layout = LAYOUTS[name]
    text = drawn(layout, ["x"] * layout.pipeline, width)
    inside = [line for line in text.splitlines() if line.startswith("│")]
    names = re.compile(r"data \d+|\+\d+|[a-z]\d+")
    ranks = [int(number) for line in inside for number in re.findall(r"\d+", names.sub("", line))]
    assert sorted(ranks) == list(range(layout.gpus))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_blocks_wrap_to_the_next_line():
    heads = [line for line in drawn(LAYOUTS["GPT-3"], ["x"] * 32).splitlines() if "stage" in line]
    stages = [[int(number) for number in re.findall(r"stage (\d+)", line)] for line in heads]
    assert stages == [[0, 1, 2], *([n, n + 1, n + 2] for n in range(3, 30, 3)), [30, 31]]


def test_blocks_fill_but_do_not_exceed_the_width_of_the_terminal():
    wide = 24  # of a block
    for width in range(wide, 3 * wide):
        lines = drawn(LAYOUTS["GPT-3"], ["10-12"] * 32, width).splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.count("╮") for line in lines) == 32
        assert lines[0].count("╮") == (width + 1) // (wide + 1)


def test_map_can_be_drawn_in_ascii():
    text = drawn(LAYOUTS["3d"], ["0-11"], encoding="ascii")
    assert text.isascii()
    assert "| a0   0   1   a0   4   5 |" in text
