"""Lists the layouts that a search for a fitting config tries, each with the values that the other
settings can take there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import log2

from engine.config.resolve import Precedence
from engine.layout import Layout
from engine.plan import Plan
from launch.validate.search_space import (
    OFFLOADS,
    STEP,
    CheckpointChoice,
    KnobValues,
    SearchSpace,
    ZeroChoice,
    copies_of_weights,
)
from models.parallel.mode import Mode
from models.parallel.registry import modes

MOST_GPUS = 2048
UNASKED_GPUS = 100.0
"""Additional cost of more GPUs than the user's --gpus."""


def spaces(plan: Plan, *, gpus_given: bool) -> list[SearchSpace]:
    """Return the layouts on the plan's GPUs and on 2, 4, 8 ... times as many, each with the values
    that the other settings can take in that layout, the cheapest first."""
    found = [
        _space(plan, layout, batch_size, gpus_given=gpus_given)
        for layout, batch_size in _layouts(plan)
        if layout == plan.layout or not _is_plain(layout, plan.layout)
    ]
    return sorted(found, key=lambda space: space.cost)


def on_gpus(plan: Plan) -> list[SearchSpace]:
    """Return all layouts on the plan's GPUs with the plan's pipeline and at least the plan's
    samples per step."""
    return [
        _space(plan, layout, batch_size, gpus_given=True)
        for layout, batch_size in _layouts(plan, exactly=False)
        if (layout.gpus, layout.pipeline) == (plan.layout.gpus, plan.layout.pipeline)
    ]


def _is_plain(layout: Layout, planned: Layout) -> bool:
    """Return whether the depth makes a mode equal to another: depth 1 is 2d, a depth of all ranks
    is sequence."""
    by_depth = layout.mode.uses_depth and layout.mode is not planned.mode
    return by_depth and layout.depth in (1, layout.tensor)


def _space(plan: Plan, layout: Layout, batch_size: int, *, gpus_given: bool) -> SearchSpace:
    return SearchSpace(
        plan=plan,
        layout=layout,
        cost=_layout_cost(plan.layout, layout, gpus_given=gpus_given),
        batch_size=batch_size,
        knobs=_knobs(plan, layout, batch_size),
    )


def _layouts(plan: Plan, *, exactly: bool = True) -> Iterator[tuple[Layout, int]]:
    """Yield layouts, each with the samples of a data-parallel rank.

    On the plan's GPUs the global batch is kept, ``exactly`` or rounded up, and other modes are
    tried. With more GPUs the samples of a rank are kept, so further copies add samples. A
    GLOBAL_BATCH_SIZE is always kept exactly.
    """
    planned = plan.layout
    pieces = plan.settings.model.n_layer // plan.settings.model.num_chunks
    gpus = planned.gpus
    while gpus <= MOST_GPUS:
        for tensor, pipeline in product(_divisors(gpus), _divisors(pieces)):
            data, rest = divmod(gpus, tensor * pipeline)
            if rest:
                continue
            if gpus > planned.gpus and (
                tensor % planned.tensor or pipeline % planned.pipeline or data % planned.data
            ):
                continue
            batch_size, uneven = _rank_batch(plan, data, added=gpus > planned.gpus)
            if uneven and (exactly or plan.settings.global_batch_size):
                continue
            batch_size += bool(uneven)
            for mode, depth in _modes(planned, tensor, added=gpus > planned.gpus):
                layout = Layout(mode=mode, tensor=tensor, pipeline=pipeline, data=data, depth=depth)
                yield layout, batch_size
        gpus *= 2


def _rank_batch(plan: Plan, data: int, *, added: bool) -> tuple[int, int]:
    """Return BATCH_SIZE on ``data`` data-parallel ranks, rounded down, and the remainder.
    ``added``: the layout has more GPUs than the plan's."""
    settings = plan.settings
    if settings.global_batch_size is None:
        if added:
            return settings.batch_size, 0
        return divmod(settings.batch_size * plan.layout.data, data)
    stated = plan.source_of["batch_size"]
    if stated.precedence == Precedence.IMPLIED:
        return divmod(settings.global_batch_size, data * settings.gradient_accumulation)
    return settings.batch_size, settings.global_batch_size % (data * settings.batch_size)


def _modes(planned: Layout, tensor: int, *, added: bool) -> Iterator[tuple[Mode, int]]:
    """Yield each mode and depth that can shard tensors over ``tensor`` ranks; only the plan's own
    mode if GPUs are ``added``."""
    if tensor == 1:
        yield (planned.mode, planned.depth) if planned.tensor == 1 else (modes()["serial"], 1)
        return
    keeps = planned.mode if planned.tensor > 1 else modes()["1d"]
    for mode in modes().values():
        if mode.name == "serial" or (added and mode is not keeps):
            continue
        for depth in _divisors(tensor) if mode.uses_depth else [1]:
            if mode.axes(tensor, depth) is not None:
                yield mode, depth


def _layout_cost(planned: Layout, other: Layout, *, gpus_given: bool) -> float:
    pairs = [
        (planned.tensor, other.tensor),
        (planned.pipeline, other.pipeline),
        (planned.gpus, other.gpus),
    ]
    cost = sum(1 + STEP * abs(log2(b / a)) for a, b in pairs if a != b)
    if other.mode not in (planned.mode, modes()["1d"], modes()["serial"]) or (
        planned.tensor > 1 and other.mode is not planned.mode
    ):
        cost += 1
    more = other.gpus > planned.gpus
    return cost + UNASKED_GPUS * (more and gpus_given)


def _knobs(plan: Plan, layout: Layout, batch_size: int) -> KnobValues:
    settings = plan.settings
    ladder: list[CheckpointChoice] = [False, "selective", True]
    lower = {"float64": ["float32"], "float32": ["bf16"]}.get(settings.precision, [])
    offload = settings.zero.offload, settings.zero.offload_params
    piped, schedule = layout.pipeline > 1, settings.schedule
    samples = _micro_batches(plan, layout, batch_size)
    fewer = [n for n in _halves(layout.pipeline) if n < batch_size // samples[-1]]
    return KnobValues(
        checkpoint=ladder[ladder.index(settings.model.checkpoint) :],
        micro_batch=samples,
        schedule=[schedule, *(["1f1b"] if piped and schedule != "1f1b" else [])],
        precision=[settings.precision, *lower],
        zero=_zeros(plan, layout),
        offload=OFFLOADS[OFFLOADS.index(offload) :] if offload in OFFLOADS else [offload],
        micro_batches=[None, *(fewer if piped else [])],
    )


def _micro_batches(plan: Plan, layout: Layout, batch_size: int) -> list[int]:
    """Return the micro-batch sizes to try, in samples: the plan's size, or the nearest that divides
    the batch, then sizes of at most half of the previous size. Of sizes that are padded to equally
    many rows, only the largest is listed."""

    def padded(samples: int) -> int:
        return layout.row_order(samples, plan.settings.seq_len).rows

    largest = {padded(n): n for n in _divisors(batch_size) if padded(n) <= padded(plan.micro_batch)}
    is_planned = layout == plan.layout
    first = plan.micro_batch if is_planned else largest[max(largest)]
    sizes = [first]
    for size, samples in sorted(largest.items(), reverse=True):
        if size <= padded(sizes[-1]) / 2 or (size < padded(sizes[-1]) and size == min(largest)):
            sizes.append(samples)
    return sizes


def _zeros(plan: Plan, layout: Layout) -> list[ZeroChoice]:
    """Return the ZeRO choices to try: the plan's stage and all higher stages, over the data axis
    and also over the axes along which the mode replicates weights, if any."""
    zero = plan.settings.zero
    copies = copies_of_weights(layout) > 1
    return [
        (stage, depth)
        for stage in range(zero.stage, 4)
        for depth in (False, True)
        if (depth >= zero.depth or not copies) and not (depth and (stage == 0 or not copies))
    ]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _halves(number: int) -> list[int]:
    """Halve ``number`` repeatedly, down to 1, and return the results."""
    halves = []
    while number > 1:
        number //= 2
        halves.append(number)
    return halves
