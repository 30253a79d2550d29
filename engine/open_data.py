"""The data of a running world, opened on all its ranks."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.loader import TrainBatches, load_batches

if TYPE_CHECKING:
    from engine.world.world import World


def open_data(world: World, *, cache: Path, notify: Callable[[str], None]) -> TrainBatches:
    """Open the batches that the world's plan asks for. All ranks call it. ``cache`` is for tokens
    where the settings name no folder; ``notify`` gets what a user should know.

    Raises:
        UserError: the data cannot be used, or a rank reads other data than rank 0.
    """
    plan = world.plan
    start = world.run_on_rank_0(lambda: uuid.uuid4().hex)  # a run's id and attempt may come again
    batches = world.run_on_all(
        lambda: load_batches(
            plan.settings,
            data_size=plan.layout.data,
            cache=cache,
            start=start,
            notify=notify,
        )
    )
    world.require_same(batches.corpus.fingerprint, "reads other data than rank 0")
    return batches
