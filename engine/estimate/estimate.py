"""The estimate of a plan: parameters, memory, FLOPs, communication volume and pipeline bubble.

Estimating needs neither torch nor a built model, and takes milliseconds for any model on any number
of GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from engine.config.virtual_stages import chunks_per_rank, virtual_stages_of
from engine.estimate.flops import flops_per_token
from engine.estimate.ledger import MemoryKind
from engine.estimate.local_shapes import DeviceType, LocalShapes
from engine.estimate.result import Estimate, Memory, StageEstimate
from engine.estimate.stage import ChunkMemory, RankSimulation
from engine.estimate.state import LocalState
from engine.estimate.traffic import block_traffic, step_traffic
from engine.pipeline.schedule import (
    Action,
    Costs,
    PipelineShape,
    ScheduleSimulator,
    actions,
    simulate,
)
from models.parameters import parameter_count
from models.stage_split import chunks_of

if TYPE_CHECKING:
    from engine.plan import Plan


def estimate(plan: Plan, *, device: DeviceType = "cuda") -> Estimate:
    """Estimate the memory, FLOPs and communication of ``plan`` on devices of one type.

    On a CPU the chunks of the loss are smaller, and gloo's reductions use more memory.
    """
    settings, layout = plan.settings, plan.layout
    shapes = LocalShapes.of(plan, device)
    shape = PipelineShape(
        ranks=layout.pipeline,
        micro_batches=settings.num_micro_batches * settings.gradient_accumulation,
        chunks=chunks_per_rank(settings, layout.pipeline),
    )
    virtual = virtual_stages_of(settings, layout.pipeline)
    orders = [actions(settings.schedule, shape, rank) for rank in range(shape.ranks)]
    chunk = cache(
        partial(
            ChunkMemory, shapes=shapes, defers_weight_gradients=_defers_weight_gradients(orders)
        )
    )
    simulations = []
    for rank in range(shape.ranks):
        ranges = chunks_of(virtual, rank, shape.ranks)
        chunks = [
            chunk(layers=len(layers), first=layers == virtual[0], last=layers == virtual[-1])
            for layers in ranges
        ]
        state = LocalState.of(shapes, ranges)
        simulations.append(
            RankSimulation(
                shapes=shapes, state=state, chunks=chunks, micro_batches=shape.micro_batches
            )
        )
    bubble = _simulate(orders, shape, simulations)
    stages = tuple(_stage(number, simulation) for number, simulation in enumerate(simulations))
    per_block = block_traffic(shapes)
    traffic = [step_traffic(simulation, per_block) for simulation in simulations]
    per_token = flops_per_token(settings.model, settings.seq_len)
    return Estimate(
        parameters=parameter_count(settings.model),
        parameters_per_rank=max(stage.parameters for stage in stages),
        flops_per_token=per_token,
        flops_per_step=per_token * plan.tokens_per_step,
        stages=stages,
        traffic=max(traffic, key=lambda rank: rank.total).volumes(),
        bubble=bubble,
    )


def _defers_weight_gradients(orders: Sequence[Sequence[Action]]) -> bool:
    """Return whether the schedule with these ``orders`` of actions defers weight gradients."""
    return any(action.kind == "backward_weight" for action in orders[0])


def _simulate(
    orders: Sequence[Sequence[Action]], shape: PipelineShape, simulations: Sequence[RankSimulation]
) -> float:
    """Simulate all ranks concurrently, in the order of the schedule if all stages take equally
    long. Return the bubble: the fraction of the step in which ranks are idle.

    A rank allocates a receive buffer as soon as the sender can send the message, as in
    engine/pipeline/schedule.py.
    """
    simulator = ScheduleSimulator(shape, [Costs()] * shape.virtual_stages)
    last = len(orders) - 1
    for rank, action in simulate(orders, simulator):
        simulation = simulations[rank]
        simulation.run(action)
        chunk = simulation.chunks[action.chunk]
        if action.kind == "forward" and not chunk.last:
            simulations[rank + 1 if rank < last else 0].receive()
        elif action.kind in ("backward", "backward_input") and not chunk.first:
            simulations[rank - 1 if rank else last].receive()
    for simulation in simulations:
        simulation.finish()
    return simulator.idle_fraction


def _stage(number: int, simulation: RankSimulation) -> StageEstimate:
    kinds = (MemoryKind.PARAMETERS, MemoryKind.GRADIENTS, MemoryKind.OPTIMIZER)
    state, ledger = simulation.state, simulation.ledger
    ended = {kind.value: ledger.live[kind] for kind in kinds}
    ended[MemoryKind.PARAMETERS] -= state.kept_weights
    return StageEstimate(
        stage=number,
        layers=tuple(state.ranges),
        parameters=state.parameters,
        memory=Memory(
            **{kind.value: size for kind, size in ledger.peak.items()}, **state.off_device()
        ),
        after_step=Memory(**ended, **state.off_device()),
    )
