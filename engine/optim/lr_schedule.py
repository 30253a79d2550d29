"""Learning-rate schedules: a common warm-up, then the ``decay`` of the schedule.

Every module in ``engine/optim/schedules`` is a schedule, by its name. Modules rather than a table,
because config lists the names and is not allowed to import this package. Warm-up and decay depend
only on the position in the run, so a checkpoint saves no state of them. Pure Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import discover

if TYPE_CHECKING:
    from engine.config.sections.optimizer import LRScheduleSettings


def lr_factor(done: int, total: int, settings: LRScheduleSettings) -> float:
    """Return the factor of the peak learning rate for the step that follows ``done`` of ``total``
    steps. With ``by='epoch'`` both count epochs, and the rate changes only between epochs.

    Warm-up is linear over ``settings.warmup`` steps: (done + 1) / (warmup + 1). No step has a rate
    of zero, and the step after the warm-up is the first at the peak (as in Colossal-AI's
    LinearWarmupLR). Then the factor is floor + (1 - floor) decay(progress), where progress =
    (done - warmup) / (total - warmup), as in torch and transformers. If ``settings.total`` is set,
    it replaces ``total``, and the factor stays at the floor after it.
    """
    assert done >= 0
    if done < settings.warmup:
        return (done + 1) / (settings.warmup + 1)
    end = total if settings.total is None else settings.total
    progress = min(1.0, (done - settings.warmup) / max(1, end - settings.warmup))
    decay: float = discover.load("engine.optim.schedules", settings.type).decay(progress)
    return settings.floor + (1.0 - settings.floor) * decay
