"""The learning rate over a run. Pure Python; every file in ``engine/optim/schedules`` is one shape.

A schedule is a warm-up that all shapes share and a ``decay`` of its own from the peak to the
floor. Both are functions of the step alone, so a resumed run needs no state to go on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from engine.errors import Refused

if TYPE_CHECKING:
    from engine.config.schema import Schedule


def lr_factor(
    step: int, total_steps: int, settings: Schedule, steps_per_epoch: float | None = None
) -> float:
    """The share of the peak learning rate that step ``step`` (counted from 1) takes.

    Warm-up lasts ``settings.warmup`` steps and is linear, step/(warmup + 1): no step is wasted at
    zero, and the one after the warm-up is the first at the peak (as in Colossal-AI's
    LinearWarmupLR). Then floor + (1 - floor) decay(progress), with progress = steps since the
    warm-up / (total - warmup), which is torch's and transformers' decay; after ``settings.total``
    (default: the whole run) the floor stays. With ``by='epoch'`` warm-up and total count epochs,
    and the factor changes between epochs only: a step belongs to the epoch of its first sample, so
    ``steps_per_epoch`` need not be whole.

    Raises Refused when epochs are asked for and the data has none (``steps_per_epoch`` is None).
    """
    assert step >= 1, f"step {step}: steps are counted from 1"
    done, whole = step - 1, total_steps
    if settings.by == "epoch":
        if steps_per_epoch is None:
            raise Refused("lr_scheduler.by='epoch' needs data that ends; here: by='step'")
        done = _epoch(step, steps_per_epoch)
        whole = _epoch(total_steps, steps_per_epoch) + 1
    if done < settings.warmup:
        return (done + 1) / (settings.warmup + 1)
    end = whole if settings.total is None else settings.total
    progress = min(1.0, (done - settings.warmup) / max(1, end - settings.warmup))
    decay: float = importlib.import_module(f"engine.optim.schedules.{settings.type}").decay(
        progress
    )
    return settings.floor + (1.0 - settings.floor) * decay


def _epoch(step: int, steps_per_epoch: float) -> int:
    """The epoch, from 0, that ``step`` begins in; a boundary missed by rounding counts as met."""
    return int((step - 1) / steps_per_epoch + 1e-9)
