"""Ranks and groups equal those that Colossal-AI's initializers create."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch.distributed as dist

from engine.layout import Layout
from engine.world.colossal import ColossalContext
from models.parallel.registry import modes

SIZES = [
    ("serial", 1, 1),
    *(("1d", size, 1) for size in (1, 2, 3, 4, 6)),
    *(("2d", size, 1) for size in (1, 4, 9, 16)),
    *(("2.5d", size, depth) for size, depth in ((4, 1), (2, 2), (8, 2), (18, 2), (27, 3))),
    *(("3d", size, 1) for size in (1, 8, 27)),
    *(("sequence", size, 1) for size in (1, 2, 3, 4, 6)),
]


@pytest.fixture
def colossal(monkeypatch: pytest.MonkeyPatch) -> ColossalContext:
    """Initialise Colossal-AI without processes: a process group is the list of its ranks."""
    monkeypatch.setattr(dist, "new_group", lambda ranks=None, backend=None: ranks)
    monkeypatch.setattr(dist, "get_backend", lambda group=None: "gloo")
    monkeypatch.setattr(dist, "destroy_process_group", lambda group=None: None)
    return ColossalContext()


def groups_of(colossal: ColossalContext, layout: Layout, rank: int) -> dict[str, Any]:
    """Return the ranks of every group of a rank, by the name of the ParallelMode."""
    colossal.open(layout, rank)
    context = colossal.context
    found = {
        mode.name: context.get_ranks_in_group(mode)
        for mode in colossal.modes
        if context.is_initialized(mode)
    }
    for mode in colossal.modes:
        if mode.name in found and mode.name != "GLOBAL":
            assert context.get_group(mode) == found[mode.name], mode
            assert context.get_local_rank(mode) == found[mode.name].index(rank), mode
    colossal.close(failed=False)
    return found


@pytest.mark.parametrize(("mode", "tensor", "depth"), SIZES)
def test_groups_equal_those_of_colossal_ai(
    colossal: ColossalContext, mode: str, tensor: int, depth: int
) -> None:
    for pipeline, data in product((1, 2, 3), (1, 2)):
        layout = Layout(
            mode=modes()[mode], tensor=tensor, pipeline=pipeline, data=data, depth=depth
        )
        inside = tuple(layout.tensor_axes)
        axes = {
            "GLOBAL": ("data", "pipeline", *inside),
            "DATA": ("data",),
            "MODEL": ("pipeline", *inside),
            "TENSOR": inside,
            **{theirs: (ours,) for ours, theirs in layout.mode.colossal_groups.items()},
        }
        if pipeline > 1:
            axes["PIPELINE"] = ("pipeline",)
        ours = {theirs: layout.groups(*along) for theirs, along in axes.items()}
        for rank in range(layout.gpus):
            theirs = groups_of(colossal, layout, rank)
            for name, groups in ours.items():
                assert theirs[name] == next(group for group in groups if rank in group), name
            for name, along in axes.items():
                if len(along) == 1:
                    assert theirs[name].index(rank) == layout.coordinates(rank)[along[0]], name


def test_every_mode_is_compared_with_colossal_ai() -> None:
    assert {mode for mode, _, _ in SIZES} == set(modes())


def test_a_second_world_in_a_process_starts_without_state_of_the_first(
    colossal: ColossalContext,
) -> None:
    """Colossal-AI stores a mode's sizes in a global and asserts that they never change."""
    for tensor in (4, 9):
        layout = Layout(mode=modes()["2d"], tensor=tensor)
        assert groups_of(colossal, layout, 0)["TENSOR"] == list(range(tensor))
