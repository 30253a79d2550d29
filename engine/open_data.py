"""The data of a running world, opened on all its ranks."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.loader import Batches, load

if TYPE_CHECKING:
    from engine.world.world import World


def open_data(world: World, *, cache: Path, notify: Callable[[str], None]) -> Batches:
    """Open the batches that the world's plan asks for. All ranks call it. ``cache`` is for tokens
    where the settings name no folder; ``notify`` gets what a user should know.

    Raises:
        Refused: the data cannot be used, or a rank reads other data than rank 0.
    """
    plan = world.plan
    start = world.share(lambda: uuid.uuid4().hex)  # a run's id and attempt may come again
    batches = world.agree(
        lambda: load(
            plan.settings,
            data_size=plan.layout.data,
            cache=cache,
            start=start,
            notify=notify,
        )
    )
    world.require_same(batches.corpus.fingerprint, "reads other data than rank 0")
    return batches
