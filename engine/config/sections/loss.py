"""Settings of the loss scale and of loss spikes."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt

from engine.config.fields import Section, setting
from engine.config.setting_types import Count, Positive, Ratio


class LossScaleSettings(Section):
    """The dynamic loss scale of fp16."""

    initial: Positive = setting("initial scale", 65536.0)
    growth_factor: Annotated[float, Gt(1)] = setting("factor after growth_interval steps", 2.0)
    backoff_factor: Ratio = setting("factor after an overflow", 0.5)
    growth_interval: Count = setting("steps without overflow before the scale grows", 1000)
    hysteresis: Count = setting("consecutive overflows before the scale is reduced", 1)
    min: Positive = setting("minimum scale", 1.0)
    max: Positive = setting("maximum scale", 2.0**32)


class LossSpikeSettings(Section):
    """Detection of loss spikes: optionally skips the update of a step whose loss jumps."""

    factor: Annotated[float, Gt(1)] | None = setting(
        "skip a step if its loss exceeds this times the median of previous losses; None: never",
        None,
    )
    window: Count = setting("number of previous losses in the median", 100)
    max_skips: Count = setting("consecutive steps that may be skipped; one more fails the run", 10)
