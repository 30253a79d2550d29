"""The name of a run, from which the name of its folder is made. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from engine.config.sections.data import DataSettings
from engine.plan import Plan
from engine.runs.folder import NAME_SEPARATOR

MAX_NAME = 200
"""Characters: a file system accepts 255 bytes, and the time is appended."""


def run_name(plan: Plan) -> str:
    """Return the name of the config, and with log.name='auto' the main settings after it."""
    settings = plan.settings
    if settings.log.name is None:
        return settings.name
    return f"{settings.name}{NAME_SEPARATOR}{'-'.join(_parts(plan))}"[:MAX_NAME]


def _data_name(data: DataSettings) -> str:
    """Return the last part of the first data path, in characters that a folder name may have;
    without a path, data.type."""
    first = data.path[0] if isinstance(data.path, tuple) else data.path
    return re.sub(r"[^\w.]+", "_", Path(first).name if first else data.type)


def _parts(plan: Plan) -> Iterator[str]:
    """Yield the model, the data, the update rule, the layout and the seed, each in a few letters.
    Values that most runs do not set are left out where they have no effect."""
    settings, model, layout = plan.settings, plan.settings.model, plan.layout
    yield f"l{model.n_layer}-w{model.n_embd}-mlp{model.n_inner}-h{model.n_head}x{model.head_dim}"
    yield f"{_data_name(settings.data)}-batch{plan.global_batch}-seq{settings.seq_len}"
    yield f"{settings.optimizer.type}-lr{settings.optimizer.lr:g}"
    schedule = settings.lr_scheduler
    if schedule.type != "constant":
        yield f"{schedule.type}-to{settings.optimizer.lr * schedule.floor:g}"
    if settings.clip_grad_norm is not None:
        yield f"clip{settings.clip_grad_norm:g}"
    if settings.max_steps is not None:
        yield f"steps{settings.max_steps}"
    elif settings.num_epochs is not None:
        yield f"epochs{settings.num_epochs}"
    if layout.tensor > 1:
        yield f"{settings.mode}x{layout.tensor}"
    if layout.pipeline > 1:
        yield f"pp{layout.pipeline}"
    if layout.data > 1:
        yield f"dp{layout.data}"
    if settings.zero.stage:
        yield f"zero{settings.zero.stage}"
    if settings.compile:
        yield "compile"
    yield f"{settings.precision}-seed{settings.seed}"
