"""Opens the data of a run on all ranks of its world."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.batches.loader import TrainBatches, load_batches

if TYPE_CHECKING:
    from engine.world.world import World


def open_data(world: World, *, cache: Path, notify: Callable[[str], None]) -> TrainBatches:
    """Open the data of the world's plan, check that all ranks read the same data, and return the
    batches. All ranks call it.

    Args:
        cache: folder for tokens, unless data.cache names one.
        notify: called with a line for the user before work that takes long.

    Raises:
        UserError: the data cannot be used, or a rank reads other data than rank 0.
    """
    plan = world.plan
    start = world.run_on_rank_0(lambda: uuid.uuid4().hex)  # not the run id: a restart has it again
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
