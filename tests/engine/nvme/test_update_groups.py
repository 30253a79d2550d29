"""Groups of parameters: every entry once, no group larger than the budget."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.errors import UserError
from engine.nvme.page_buffers import LINE, PAGE
from engine.nvme.prefetch import SHARES
from engine.nvme.update_groups import ALIGNMENT, GroupBudget, ParameterSlice, group_slices


def piece(name: str, entries: int, dtype: torch.dtype = torch.float32) -> ParameterSlice:
    parameter = nn.Parameter(torch.zeros(entries, dtype=dtype))
    return ParameterSlice(name=name, parameter=parameter, group=0, start=0, stop=entries)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.integers(0, 5 * ALIGNMENT), min_size=1, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    states=st.integers(1, 3),
    weights=st.booleans(),
    pages=st.integers(0, 40),
    divisible=st.booleans(),
)
def test_every_entry_is_in_one_group_and_no_group_is_too_large(
    entries: list[int],
    dtype: torch.dtype,
    states: int,
    weights: bool,
    pages: int,
    divisible: bool,
) -> None:
    least = (ALIGNMENT if divisible else max(entries)) * dtype.itemsize * (states + weights)
    size = (least // PAGE + 5 + pages) * PAGE
    budget = GroupBudget(size=size, states=states, weights=weights, divisible=divisible)
    wholes = [piece(str(number), count, dtype) for number, count in enumerate(entries)]
    groups = group_slices(wholes, budget)

    found = [part for group in groups for part in group]
    for number, count in enumerate(entries):
        spans = [(part.start, part.stop) for part in found if part.name == str(number)]
        assert spans[0][0] == 0
        assert spans[-1][1] == count
        assert all(one[1] == two[0] for one, two in pairwise(spans))
        assert all(start % ALIGNMENT == 0 for start, _ in spans)
        assert divisible or len(spans) == 1
    for group in groups:
        taken = set[int]()
        for part in group:
            bytes_ = part.entries * dtype.itemsize
            spans = [(budget.state_offset(part, number), bytes_) for number in range(states)]
            assert all(start >= LINE for start, _ in spans)
            assert all(start + size <= budget.slot_bytes(group) - LINE for start, size in spans)
            if weights:
                assert part.weight >= budget.slot_bytes(group)
                assert part.weight % PAGE == 0
                spans.append((part.weight, -(-bytes_ // PAGE) * PAGE))
            for start, length in spans:
                lines = set(range(start // LINE, -(-(start + length) // LINE)))
                assert not lines & taken, "two tensors overlap"
                taken |= lines
        assert max(taken, default=0) < size // LINE
    few = sum(budget.slice_bytes(part.entries, dtype.itemsize) for part in found)
    assert len(groups) <= 1 + 2 * few // budget.empty or not divisible


def test_slices_of_a_parameter_have_separate_states() -> None:
    budget = GroupBudget(size=2 * ALIGNMENT * 8, states=2)
    groups = group_slices([piece("w", 5 * ALIGNMENT)], budget)
    groups[0][0].states["a"] = 0, torch.float32
    assert not groups[1][0].states


@pytest.mark.parametrize("divisible", [True, False])
def test_a_buffer_that_is_too_small_is_rejected_with_the_minimum(divisible: bool) -> None:
    wholes = [piece("v", 10), piece("w", 20_000)]
    with pytest.raises(UserError) as refusal:
        group_slices(wholes, GroupBudget(size=5 * PAGE, states=2, divisible=divisible))
    whole = "" if divisible else ", which is updated as a whole"
    match = re.fullmatch(
        rf"zero.nvme_buffer must be at least (\d+) for w{whole}", str(refusal.value)
    )
    assert match
    least = int(match[1]) // SHARES
    group_slices(wholes, GroupBudget(size=least, states=2, divisible=divisible))
    with pytest.raises(UserError):
        group_slices(wholes, GroupBudget(size=least - PAGE, states=2, divisible=divisible))
