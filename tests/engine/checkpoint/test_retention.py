"""The choice of the checkpoints to delete."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.retention import checkpoints_to_delete


@pytest.mark.parametrize(
    ("losses", "keep", "best", "gone"),
    [
        ({}, 1, True, []),
        ({1: None, 2: None, 3: None}, 2, True, [1]),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0}, 1, True, [1, 3]),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0}, 1, False, [1, 2, 3]),
        ({1: 1.0, 2: 1.0, 3: 2.0}, 1, True, [1]),  # of equal ones the latest
        ({1: 1.0, 2: None, 3: None}, 5, True, []),
    ],
)
def test_checkpoints_except_the_latest_and_the_best_are_deleted(losses, keep, best, gone):
    assert checkpoints_to_delete(losses, keep=keep, best=best) == gone


@settings(derandomize=True, database=None)
@given(
    st.dictionaries(st.integers(1, 50), st.none() | st.floats(0, 9)),
    st.integers(1, 6),
    st.booleans(),
)
def test_the_number_of_kept_checkpoints_is_the_requested_one(losses, keep, best):
    gone = set(checkpoints_to_delete(losses, keep=keep, best=best))
    kept = losses.keys() - gone
    assert gone <= losses.keys()
    assert set(sorted(losses)[-keep:]) <= kept
    assert len(kept) <= keep + best
    validated = {step: loss for step, loss in losses.items() if loss is not None}
    if best and validated:
        assert min(validated.values()) in [losses[step] for step in kept]
