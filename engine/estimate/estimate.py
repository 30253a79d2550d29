"""What a plan takes, told from the plan alone: parameters, memory, FLOPs, bytes sent, bubble.

No torch, and nothing is built: milliseconds for any size of model and any number of GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from engine.estimate.flops import flops_per_token
from engine.estimate.ledger import Kind
from engine.estimate.local_shapes import Device, Local
from engine.estimate.result import Estimate, Memory, StageEstimate
from engine.estimate.stage import Chunk, Course
from engine.estimate.state import State
from engine.estimate.traffic import Steps
from engine.pipeline_schedule import Action, Clock, Costs, Shape, actions, simulate
from models.config import Sizes
from models.parameters import parameter_count
from models.stage_split import chunks_of, virtual_stages

if TYPE_CHECKING:
    from engine.plan import Plan


def estimate(plan: Plan, *, device: Device = "cuda") -> Estimate:
    """What ``plan`` takes on devices of that kind (a loss chunk is smaller on a CPU, and gloo's
    sums take another way)."""
    settings, layout = plan.settings, plan.layout
    local = Local.of(plan, device)
    shape = Shape(
        ranks=layout.pipeline,
        micro_batches=settings.num_micro_batches * settings.gradient_accumulation,
        chunks=settings.model.num_chunks if layout.pipeline > 1 else 1,
    )
    virtual = virtual_stages(
        Sizes.of(settings.model),
        settings.seq_len,
        shape.ranks * shape.chunks,
        balanced=settings.stages == "balanced",
    )
    orders = [actions(settings.schedule, shape, rank) for rank in range(shape.ranks)]
    chunk = cache(partial(Chunk, local=local, split=_splits(orders)))
    courses = []
    for rank in range(shape.ranks):
        ranges = chunks_of(virtual, rank, shape.ranks)
        chunks = [
            chunk(layers=len(layers), first=layers == virtual[0], last=layers == virtual[-1])
            for layers in ranges
        ]
        state = State.of(local, ranges)
        courses.append(
            Course(local=local, state=state, chunks=chunks, micro_batches=shape.micro_batches)
        )
    bubble = _run(orders, shape, courses)
    stages = tuple(_stage(number, course) for number, course in enumerate(courses))
    steps = Steps(local)
    sent = [steps.of(course) for course in courses]
    per_token = flops_per_token(settings.model, settings.seq_len)
    return Estimate(
        parameters=parameter_count(settings.model),
        parameters_per_rank=max(stage.parameters for stage in stages),
        flops_per_token=per_token,
        flops_per_step=per_token * plan.tokens_per_step,
        stages=stages,
        traffic=max(sent, key=lambda one: one.total).sent(),
        bubble=bubble,
    )


def _splits(orders: Sequence[Sequence[Action]]) -> bool:
    """Whether a schedule puts off the gradients of weights."""
    return any(action.kind == "weight" for action in orders[0])


def _run(orders: Sequence[Sequence[Action]], shape: Shape, courses: Sequence[Course]) -> float:
    """All ranks' courses, side by side as in a schedule of equal stages; its idle fraction.

    A message is awaited from the moment when it can be sent, as in engine/pipeline_schedule.py.
    """
    clock, last = Clock(shape, [Costs()] * (shape.ranks * shape.chunks)), len(orders) - 1
    for rank, action in simulate(orders, clock):
        course = courses[rank]
        course.run(action)
        chunk = course.chunks[action.chunk]
        if action.kind == "forward" and not chunk.last:
            courses[rank + 1 if rank < last else 0].receive()
        elif action.kind in ("backward", "input") and not chunk.first:
            courses[rank - 1 if rank else last].receive()
    for course in courses:
        course.finish()
    return 1 - sum(clock.busy) / (shape.ranks * max(clock.free))


def _stage(number: int, course: Course) -> StageEstimate:
    held = (Kind.PARAMETERS, Kind.GRADIENTS, Kind.OPTIMIZER)
    state, ledger = course.state, course.ledger
    ended = {kind.value: ledger.live[kind] for kind in held}
    ended[Kind.PARAMETERS] -= state.kept_weights
    return StageEstimate(
        stage=number,
        layers=tuple(state.ranges),
        parameters=state.parameters,
        memory=Memory(**{kind.value: size for kind, size in ledger.peak.items()}, **state.beside()),
        after_step=Memory(**ended, **state.beside()),
    )
