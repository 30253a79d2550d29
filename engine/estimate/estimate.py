"""What a plan takes, told from the plan alone: parameters, memory, FLOPs, bytes sent, bubble.

No torch, and nothing is built: milliseconds for any size of model and any number of GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.estimate.figures import Estimate, Memory, StageEstimate
from engine.estimate.ledger import Kind
from engine.estimate.local import Device, Local
from engine.estimate.stage import Chunk, step
from engine.estimate.state import State, held
from engine.flops import flops_per_token
from engine.schedule import Costs, Shape, actions, idle_fraction
from models.parameters import parameter_count
from models.sizes import Sizes
from models.stages import chunks_of, virtual_stages

if TYPE_CHECKING:
    from engine.plan import Plan


def estimate(plan: Plan, *, device: Device = "cuda") -> Estimate:
    """What ``plan`` takes on devices of that kind (a loss chunk is smaller on a CPU, and gloo's
    sums take another way)."""
    settings, layout = plan.settings, plan.layout
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
    local = Local.of(plan, device)
    stages = tuple(
        _stage(local, shape, stage, tuple(chunks_of(virtual, stage, shape.ranks)))
        for stage in range(shape.ranks)
    )
    per_token = flops_per_token(settings.model, settings.seq_len)
    orders = [actions(settings.schedule, shape, rank) for rank in range(shape.ranks)]
    return Estimate(
        parameters=parameter_count(settings.model),
        parameters_per_rank=max(stage.parameters for stage in stages),
        flops_per_token=per_token,
        flops_per_step=per_token * plan.tokens_per_step,
        stages=stages,
        traffic=(),
        bubble=idle_fraction(orders, [Costs()] * (shape.ranks * shape.chunks), shape),
    )


def _stage(local: Local, shape: Shape, stage: int, ranges: tuple[range, ...]) -> StageEstimate:
    rank = local.layout.rank({**dict.fromkeys(local.layout.axes, 0), "pipeline": stage})
    state = State(local=local, chunks=[held(local, layers, rank) for layers in ranges])
    chunks = [Chunk(local=local, layers=layers) for layers in ranges]
    ledger = step(local, state, chunks, actions(local.settings.schedule, shape, stage))
    ended = {
        kind: ledger.live[kind] for kind in (Kind.PARAMETERS, Kind.GRADIENTS, Kind.OPTIMIZER)
    }
    return StageEstimate(
        stage=stage,
        layers=ranges,
        parameters=state.parameters,
        memory=Memory(**ledger.peak),
        after_step=Memory(**ended),
    )
