"""The learning rate over a run. Pure Python; every file in ``engine/optim/schedules`` is one shape.

A schedule is a warm-up that all shapes share and a ``decay`` of its own from the peak to the
floor. Both are functions of the position in the run alone, so a resumed run needs no state of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import discover

if TYPE_CHECKING:
    from engine.config.schema import LRScheduleSettings


def lr_factor(done: int, whole: int, settings: LRScheduleSettings) -> float:
    """The share of the peak learning rate that a step takes after ``done`` steps of ``whole``, or,
    with ``by='epoch'``, after so many epochs: then it changes between epochs only.

    Warm-up lasts ``settings.warmup`` of them and is linear, (done + 1)/(warmup + 1): no step is
    wasted at zero, and the one after the warm-up is the first at the peak (as in Colossal-AI's
    LinearWarmupLR). Then floor + (1 - floor) decay(progress), with progress = those since the
    warm-up / (whole - warmup), which is torch's and transformers' decay; after ``settings.total``
    (default: the whole run) the floor stays.
    """
    assert done >= 0
    if done < settings.warmup:
        return (done + 1) / (settings.warmup + 1)
    end = whole if settings.total is None else settings.total
    progress = min(1.0, (done - settings.warmup) / max(1, end - settings.warmup))
    decay: float = discover.load("engine.optim.schedules", settings.type).decay(progress)
    return settings.floor + (1.0 - settings.floor) * decay
