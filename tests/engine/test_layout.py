"""Ranks, groups and shards of every mode at many sizes: every entry has exactly one place."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from engine.layout import Layout
from models.config import GPTConfig
from models.parallel.registry import modes
from models.parallel.shard import shard_of
from models.parameters import parameters
from tests.support.mode_sizes import mode_sizes

LARGEST = 27
# Nothing here need divide anything: boxes alone carry the remainder.
UNEVEN = GPTConfig(
    n_layer=1, n_head=5, n_embd=23, head_dim=3, n_inner=50, vocab_size=29, block_size=7
)


def layouts() -> list[Layout]:
    """Yield a layout for every legal (TENSOR_PARALLEL, DEPTH) up to ``LARGEST``; small ones also
    with PIPELINE and data ranks."""
    found = []
    for cut in mode_sizes(LARGEST):
        size = {"tensor": cut.tensor, "depth": cut.depth}
        found.append(Layout(mode=modes()[cut.mode], **size))
        if cut.tensor <= 9:
            found.append(Layout(mode=modes()[cut.mode], **size, pipeline=3, data=2))
    return found


def name(layout: Layout) -> str:
    depth = f"d{layout.depth}" if layout.mode.uses_depth else ""
    return f"{layout.mode.name}x{layout.tensor}{depth}-pp{layout.pipeline}-dp{layout.data}"


each_layout = pytest.mark.parametrize("layout", layouts(), ids=name)


@each_layout
def test_coordinates_and_ranks_are_one_to_one(layout: Layout) -> None:
    found = [layout.coordinates(rank) for rank in range(layout.gpus)]
    assert [layout.rank(index) for index in found] == list(range(layout.gpus))
    last_fastest = list(product(*map(range, layout.axes.values())))
    assert [tuple(index[axis] for axis in layout.axes) for index in found] == last_fastest


@each_layout
def test_the_order_of_ranks_is_tensor_then_pipeline_then_data(layout: Layout) -> None:
    tensor = list(layout.tensor_axes)
    for data, stage in product(range(layout.data), range(layout.pipeline)):
        first = (data * layout.pipeline + stage) * layout.tensor
        ranks = list(range(first, first + layout.tensor))
        assert ranks in layout.groups(*tensor)
        assert {layout.coordinates(rank)["data"] for rank in ranks} == {data}
        assert {layout.coordinates(rank)["pipeline"] for rank in ranks} == {stage}


@each_layout
def test_groups_of_an_axis_partition_the_ranks(layout: Layout) -> None:
    for axis, size in layout.axes.items():
        groups = layout.groups(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(layout.gpus))
        for group in groups:
            assert [layout.coordinates(rank)[axis] for rank in group] == list(range(size))
            rest = [{**layout.coordinates(rank), axis: 0} for rank in group]
            assert all(index == rest[0] for index in rest)


@each_layout
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_shards_tile_every_parameter(layout: Layout, tied: bool) -> None:
    """Ranks that differ along the sharding axes hold every entry exactly once; the others hold
    equal shards."""
    sizes = GPTConfig(**{**vars(UNEVEN), "tie_embeddings": tied})
    for parameter in parameters(sizes, layout.mode):
        boxes = [layout.shard(parameter.shape, parameter.spec, r) for r in range(layout.gpus)]
        assert len({box.local for box in boxes}) == 1, "collectives want equal shapes"
        for group in layout.groups(*boxes[0].sharded_axes):
            held = np.zeros(parameter.shape, int)
            for rank in group:
                held[boxes[rank].slices] += 1
            assert (held == 1).all(), parameter.name
        for group in layout.groups(*(layout.axes.keys() - boxes[0].sharded_axes)):
            assert all(boxes[rank] == boxes[group[0]] for rank in group), parameter.name


def test_a_mode_shards_only_over_its_own_axes() -> None:
    for layout in layouts():
        for parameter in parameters(UNEVEN, layout.mode):
            assert {a for axes in parameter.spec for a in axes} <= layout.tensor_axes.keys()


def test_the_last_shards_of_an_uneven_dimension_are_padded() -> None:
    """5 entries over c, of 2 ranks: 3 and 2. Each of these over b, of 2 ranks: 2 and 1, 2 and 0."""
    sizes = {"c": 2, "b": 2}
    boxes = [shard_of((5,), (("c", "b"),), sizes, {"c": n // 2, "b": n % 2}) for n in range(4)]
    assert [box.offset for box in boxes] == [(0,), (2,), (3,), (5,)]
    assert [box.size for box in boxes] == [(2,), (1,), (2,), (0,)]
    assert [box.local for box in boxes] == [(2,)] * 4
    assert [box.is_padded for box in boxes] == [False, True, False, True]


def test_shards_over_a_faster_axis_stay_within_those_of_the_slower_axis() -> None:
    """A gather over the fastest axis gives a shard of the spec without that axis."""
    for n in range(1, 40):
        for c, b in product(range(3), range(4)):
            fine = shard_of((n,), (("c", "b"),), {"c": 3, "b": 4}, {"c": c, "b": b})
            coarse = shard_of((n,), (("c",),), {"c": 3}, {"c": c})
            assert coarse.offset[0] <= fine.offset[0]
            assert fine.offset[0] + fine.size[0] <= coarse.offset[0] + coarse.size[0]
