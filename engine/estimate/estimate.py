"""What a plan takes, told from the plan alone: parameters, memory, FLOPs, bytes sent, bubble.

No torch, and nothing is built: milliseconds for any size of model and any number of GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from engine.estimate.figures import Estimate, Memory, StageEstimate
from engine.flops import flops_per_token
from engine.schedule import Costs, Shape, actions, idle_fraction
from models.parameters import parameter_count, parameters
from models.sizes import Sizes
from models.stages import chunks_of, uniform

if TYPE_CHECKING:
    from engine.plan import Plan

Device = Literal["cpu", "cuda"]


def estimate(plan: Plan, *, device: Device = "cuda") -> Estimate:
    """What ``plan`` takes on devices of that kind (a loss chunk is smaller on a CPU, and gloo's
    small sums take another way)."""
    settings, layout = plan.settings, plan.layout
    model, sizes = settings.model, Sizes.of(settings.model)
    virtual = uniform(model.n_layer, layout.pipeline * model.num_chunks)
    stages = []
    for stage in range(layout.pipeline):
        ranges = tuple(chunks_of(virtual, stage, layout.pipeline))
        rank = layout.rank({**dict.fromkeys(layout.axes, 0), "pipeline": stage})
        held = 0
        for layers in ranges:
            for parameter in parameters(sizes, layout.mode, layers):
                piece = 1
                for n in layout.box(parameter.shape, parameter.cut, rank).local:
                    piece *= n
                held += piece
        memory = Memory(parameters=4 * held, gradients=4 * held, optimizer=8 * held)
        stages.append(
            StageEstimate(
                stage=stage, layers=ranges, parameters=held, memory=memory, after_step=memory
            )
        )
    per_token = flops_per_token(model, settings.seq_len)
    shape = Shape(
        ranks=layout.pipeline,
        micro_batches=settings.num_micro_batches * settings.gradient_accumulation,
        chunks=model.num_chunks,
    )
    orders = [actions(settings.schedule, shape, rank) for rank in range(layout.pipeline)]
    return Estimate(
        parameters=parameter_count(model),
        parameters_per_rank=max(stage.parameters for stage in stages),
        flops_per_token=per_token,
        flops_per_step=per_token * plan.tokens_per_step,
        stages=tuple(stages),
        traffic=(),
        bubble=idle_fraction(orders, [Costs()] * (shape.ranks * shape.chunks), shape),
    )
