"""The best checkpoint of a run, and the choice of the checkpoints to delete. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice


def _always(step: int) -> bool:
    return True


def best_step(
    losses: Mapping[int, float | None], is_intact: Callable[[int], bool] = _always
) -> int | None:
    """Return the step of the lowest loss (of equal losses the latest step) whose
    checkpoint is intact; None where there is none."""
    validated = [(loss, -step) for step, loss in losses.items() if loss is not None]
    return next((-step for _, step in sorted(validated) if is_intact(-step)), None)


def checkpoints_to_delete(
    losses: Mapping[int, float | None],
    *,
    keep: int,
    best: bool,
    is_intact: Callable[[int], bool] = _always,
) -> list[int]:
    """Return the steps of all checkpoints but the ``keep`` latest intact ones and, with ``best``,
    the best intact one. ``is_intact`` is called for no more steps than necessary."""
    retained: set[int | None] = {*islice(filter(is_intact, sorted(losses, reverse=True)), keep)}
    if best:
        retained.add(best_step(losses, is_intact))
    return sorted(losses.keys() - retained)
