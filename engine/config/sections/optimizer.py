"""Settings of the optimizer and the learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from engine.config.fields import Section, setting
from engine.config.setting_types import (
    DataUnit,
    LRScheduleName,
    NotNegative,
    OptimizerName,
    Positive,
    Share,
)


class OptimizerSettings(Section):
    """The optimizer."""

    type: OptimizerName = setting("the update rule", "adamw")
    lr: Positive = setting("peak learning rate", 1e-3)
    betas: tuple[Share, Share] = setting("decay of Adam's two moments", (0.9, 0.999))
    eps: NotNegative = setting("added to Adam's denominator", 1e-8)
    weight_decay: NotNegative = setting(
        "decay of the weights: decoupled in adamw, an L2 term in the others",
        lambda given: 0.01 if given["type"] == "adamw" else 0.0,
        shown="0.01 for adamw, else 0.0",
    )
    momentum: Share = setting("momentum of sgd", 0.0)
    decay: Literal["linears", "matrices", "weights", "all"] = setting(
        "parameters with weight decay: linear weights with an untied head; also embeddings and "
        "positions; also weights of norms (all but biases); all",
        lambda given: "matrices" if given["type"] == "adamw" else "all",
        shown="'matrices' for adamw, else 'all'",
    )


class LRScheduleSettings(Section):
    """The learning rate schedule."""

    type: LRScheduleName = setting("shape of the decay", "constant")
    by: DataUnit = setting(
        "unit of total; by epochs (also fractions) and tokens, the rate of a step follows from the "
        "data consumed by its end",
        "step",
    )
    total: Positive | None = setting("end of the decay, in units of by; None: end of the run", None)
    warmup: NotNegative = setting("length of the linear warm-up, in units of warmup_by", 0)
    warmup_by: DataUnit = setting("unit of warmup", lambda given: given["by"], shown="by")
    floor: Annotated[float, Ge(0), Le(1)] = setting(
        "minimum learning rate, as a fraction of optimizer.lr", 0.0
    )
