"""What would make a config fit: overrides that were tried, each as a whole plan with its estimate.

The model stays as it is, and so do its samples a step unless copies are added.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from engine.config.errors import ConfigError
from engine.estimate.estimate import estimate
from engine.estimate.figures import Estimate
from engine.plan import Plan, make_plan
from models.parallel.registry import modes

TRIES = 300  # plans that are made to find answers
SECONDS = 0.6  # and how long for each: models of a thousand pieces take longer to estimate
SIZES = 4  # larger sizes of an axis that are tried, and smaller ones of a micro-batch
MOST_GPUS = 2048
SLOW = 8  # steps of other knobs that one of offloading counts for: it costs the most time


@dataclass(frozen=True, kw_only=True)
class Request:
    """A config as the user asked for it."""

    path: Path
    gpus: int | None
    overrides: tuple[str, ...]
    environ: Mapping[str, str]

    def plan(self, further: Sequence[str] = (), gpus: int | None = None) -> Plan:
        """The plan, or the one with ``further`` overrides on ``gpus``. Raises ConfigError."""
        return make_plan(
            self.path,
            gpus=gpus or self.gpus,
            overrides=[*self.overrides, *further],
            environ=self.environ,
        )


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Overrides beyond those of the request, and what the plan with them takes."""

    overrides: tuple[str, ...]
    plan: Plan
    estimate: Estimate

    def words(self, plan: Plan) -> str:
        """What to type behind a command that made ``plan``."""
        gpus = self.plan.layout.gpus
        return " ".join([*self.overrides, *([f"--gpus {gpus}"] * (gpus != plan.layout.gpus))])


Checkpoint = bool | Literal["selective"]
Offload = tuple[str | None, str | None]  # of the states, of the parameters
Zero = tuple[int, bool]  # the stage, and whether over depth as well
OFFLOADS: Sequence[Offload] = [(None, None), ("cpu", None), ("cpu", "cpu")]


class Wanted(NamedTuple):
    """How the knobs stand."""

    checkpoint: Checkpoint
    micro_batch: int  # samples
    precision: str
    zero: Zero
    offload: Offload
    tensor: int
    pipeline: int
    data: int


class Knobs(NamedTuple):
    """What can be turned, each from how it stands to its strongest."""

    checkpoint: Sequence[Checkpoint]
    micro_batch: Sequence[int]
    precision: Sequence[str]
    zero: Sequence[Zero]
    offload: Sequence[Offload]
    tensor: Sequence[int]
    pipeline: Sequence[int]
    data: Sequence[int]

    def turned(self, steps: Steps) -> Wanted:
        pairs: Iterator[tuple[Sequence[Any], int]] = zip(self, steps, strict=True)
        return Wanted(*(values[step] for values, step in pairs))


Steps = tuple[int, ...]  # of each knob; 0: left as it stands


def alternatives(
    request: Request, plan: Plan, gpu_memory: int, *, enough: int
) -> list[Alternative]:
    """The mildest changes that fit into ``gpu_memory`` bytes a GPU, at most ``enough`` of them.

    The fewer knobs are turned the milder; what only adds to an answer is left out.
    """
    knobs = _knobs(plan)
    found: dict[Steps, Alternative] = {}
    end = time.process_time() + SECONDS * enough
    for steps in islice(_by_mildness(knobs), TRIES):
        if len(found) == enough or time.process_time() > end:
            break
        if any(_contains(steps, other) for other in found):
            continue
        tried = _try(request, plan, knobs.turned(steps))
        if tried is not None and tried.estimate.fullest.memory.total <= gpu_memory:
            found[steps] = tried
    return list(found.values())


def _knobs(plan: Plan) -> Knobs:
    settings, layout = plan.settings, plan.layout
    ladder: list[Checkpoint] = [False, "selective", True]
    mode = layout.mode if layout.tensor > 1 else modes()["1d"]
    milder = {"float64": ["float32"], "float32": ["bf16"]}.get(settings.precision, [])
    samples = [n for n in range(plan.micro_batch - 1, 0, -1) if settings.batch_size % n == 0]
    multiples = [layout.tensor * n for n in range(2, 28)]
    tensor = [n for n in multiples if mode.axes(n, layout.depth) is not None]
    offload = settings.zero.offload, settings.zero.offload_params
    pieces = settings.model.n_layer // settings.model.num_chunks
    stages = range(2 * layout.pipeline, pieces + 1, layout.pipeline)
    return Knobs(
        checkpoint=ladder[ladder.index(settings.model.checkpoint) :],
        micro_batch=[plan.micro_batch, *samples[:SIZES]],
        precision=[settings.precision, *milder],
        zero=_zeros(plan),
        offload=OFFLOADS[OFFLOADS.index(offload) :] if offload in OFFLOADS else [offload],
        tensor=[layout.tensor, *tensor[:SIZES]],
        pipeline=[layout.pipeline, *[n for n in stages if pieces % n == 0][:SIZES]],
        data=[layout.data * 2**n for n in range(12)],
    )


def _zeros(plan: Plan) -> list[Zero]:
    """Stages from the plan's on, each over data, then over depth as well if there are copies."""
    zero, layout = plan.settings.zero, plan.layout
    copies = any(layout.tensor_axes[axis] > 1 for axis in layout.mode.replicated)
    return [
        (stage, depth)
        for stage in range(zero.stage, 4)
        for depth in (False, True)
        if depth >= zero.depth and not (depth and (stage == 0 or not copies))
    ]


def _by_mildness(knobs: Knobs) -> Iterator[Steps]:
    """All settings of the knobs but the one they are in: fewer turned ones first, then cheaper
    steps."""

    offload = Knobs._fields.index("offload")

    def cost(steps: Steps) -> int:
        return sum(steps) + (SLOW - 1) * steps[offload]

    for count in range(1, len(knobs) + 1):
        level = []
        for turned in combinations(range(len(knobs)), count):
            for steps in product(*(range(1, len(knobs[knob])) for knob in turned)):
                by_knob = dict(zip(turned, steps, strict=True))
                level.append(tuple(by_knob.get(knob, 0) for knob in range(len(knobs))))
        yield from sorted(level, key=cost)


def _contains(steps: Steps, other: Steps) -> bool:
    return all(mine >= theirs for mine, theirs in zip(steps, other, strict=True))


def _try(request: Request, plan: Plan, wanted: Wanted) -> Alternative | None:
    """The plan with the knobs turned so; None where that is not legal."""
    gpus, batch_size = _spread(plan, wanted)
    if gpus > MOST_GPUS or batch_size % wanted.micro_batch:
        return None
    overrides = _overrides(plan, wanted, batch_size)
    try:
        other = request.plan(overrides, gpus)
    except ConfigError:
        return None
    return Alternative(overrides=overrides, plan=other, estimate=estimate(other))


def _spread(plan: Plan, wanted: Wanted) -> tuple[int, int]:
    """GPUs, and samples of a data-parallel rank.

    A model that takes more GPUs takes them from its copies, if that leaves whole ones, each of
    which then has more samples; otherwise there are more GPUs.
    """
    layout, batch_size = plan.layout, plan.settings.batch_size
    one = wanted.tensor * wanted.pipeline
    times, rest = divmod(one, layout.tensor * layout.pipeline)
    if wanted.data == layout.data and not rest and layout.data % times == 0:
        return layout.gpus, batch_size * times
    return one * wanted.data, batch_size


def _overrides(plan: Plan, wanted: Wanted, batch_size: int) -> tuple[str, ...]:
    """What tells the knobs from how the plan has them."""
    settings, layout = plan.settings, plan.layout
    offload, offload_params = wanted.offload
    stage, depth = wanted.zero
    pairs: list[tuple[str, object, object]] = [
        ("TENSOR_PARALLEL", wanted.tensor, layout.tensor),
        ("MODE", "1d" if layout.tensor == 1 < wanted.tensor else settings.mode, settings.mode),
        ("PIPELINE", wanted.pipeline, layout.pipeline),
        ("BATCH_SIZE", batch_size, settings.batch_size),
        ("NUM_MICRO_BATCHES", batch_size // wanted.micro_batch, settings.num_micro_batches),
        ("model.checkpoint", wanted.checkpoint, settings.model.checkpoint),
        ("precision", wanted.precision, settings.precision),
        ("zero.stage", stage, settings.zero.stage),
        ("zero.depth", depth, settings.zero.depth),
        ("zero.offload", offload, settings.zero.offload),
        ("zero.offload_params", offload_params, settings.zero.offload_params),
    ]
    return tuple(f"{name}={value}" for name, value, now in pairs if value != now)
