"""The positions of GPUs in a drawing, compared with the layout's coordinates."""

from __future__ import annotations

import re

import pytest

from engine.errors import UserError
from launch.validate.map_blocks import LINE, MAX_GPUS, Plane, blocks, title
from tests.launch.validate.support import LAYOUTS, layout

every_layout = pytest.mark.parametrize("found", LAYOUTS.values(), ids=LAYOUTS)


def ranks(plane: Plane) -> list[int]:
    return [rank for row in plane.ranks for rank in row]


@every_layout
def test_every_rank_is_placed_once(found):
    drawn = [rank for block in blocks(found) for plane in block.planes for rank in ranks(plane)]
    assert sorted(drawn) == list(range(found.gpus))


@every_layout
def test_rank_has_the_coordinates_of_its_block_plane_row_and_column(found):
    for block in blocks(found):
        for plane in block.planes:
            for row, across in zip(plane.rows, plane.ranks, strict=True):
                for column, rank in zip(plane.columns, across, strict=False):
                    said = {**block.index, **plane.index, **named(row, column)}
                    where = found.coordinates(rank)
                    assert said == {axis: where[axis] for axis in said}
                    assert all(where[axis] == 0 for axis in where.keys() - said.keys())


def named(row: str, column: str) -> dict[str, int]:
    """Return the coordinates in the names of a row and a column: 'r1', 'c0', 'data 8', '+3'."""
    if column.startswith("+"):
        axis, start = named_axis(row)
        return {axis: start + int(column)}
    return dict(named_axis(name) for name in (row, column) if name)


def named_axis(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+) ?(\d+)", name)
    assert match, name
    return match[1], int(match[2])


def test_cube_has_one_plane_per_index_of_its_slowest_axis():
    (block,) = blocks(LAYOUTS["3d"])
    assert [(plane.index, plane.ranks) for plane in block.planes] == [
        ({"c": 0}, ((0, 1), (2, 3))),
        ({"c": 1}, ((4, 5), (6, 7))),
    ]
    assert (block.planes[0].rows, block.planes[0].columns) == (("a0", "a1"), ("b0", "b1"))


def test_copies_without_tensor_parallelism_share_a_block():
    assert [block.index for block in blocks(LAYOUTS["stages"])] == [
        {"pipeline": stage} for stage in range(3)
    ]


def test_long_row_is_wrapped():
    (block,) = blocks(LAYOUTS["1d, wide"])
    (plane,) = block.planes
    assert [len(row) for row in plane.ranks] == [LINE, 12 - LINE]
    assert plane.rows == ("t0", f"t{LINE}")


def test_titles_of_blocks_differ():
    def titles(name: str) -> list[str]:
        return [title(block, LAYOUTS[name]) for block in blocks(LAYOUTS[name])]

    assert titles("1d") == ["stage 0", "stage 1"] * 2
    assert titles("2.5d") == ["data 0", "data 1"]
    assert titles("many copies") == ["all GPUs"]
    assert titles("3d") == ["stage 0"]


def test_too_many_gpus_are_rejected():
    assert len(blocks(layout(data=MAX_GPUS))) == 1
    with pytest.raises(UserError, match=f"a map shows at most {MAX_GPUS} GPUs, not {2**32}"):
        blocks(layout("1d", 2**16, pipeline=2**16))
