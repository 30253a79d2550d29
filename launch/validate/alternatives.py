"""Searches for overrides that make a config fit; each variant is planned and estimated.

The search is best-first: variants are ordered by how little they change
(launch/validate/search_space.py). Variants that change the same knobs of one layout are a kind.
Before a variant is tried, the variant of its kind that needs the least memory is tried: if it does
not fit, the kind is closed, because every knob only reduces memory. (Except the precision: its two
values are two kinds.) So few tries close a layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from pathlib import Path

from engine.errors import ConfigError, UserError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.formatting import plural
from engine.plan import Plan, make_plan
from launch.validate.search_layouts import spaces
from launch.validate.search_space import (
    OFFLOAD,
    PRECISION,
    KnobSteps,
    KnobValues,
    SearchSpace,
)
from launch.vocabulary import size_on_this_machine, with_size

MAX_WORK = 800.0
"""Budget of a search: nominal milliseconds of its plans and estimates, as on a machine of 2025. It
is counted, not measured, so that the result does not depend on the speed of the machine."""
NEAREST = 3
"""Number of nearest misses that are reported if nothing fits."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A config with the user's number of GPUs, overrides and environment."""

    path: Path
    gpus: int | None
    overrides: tuple[str, ...]
    environ: Mapping[str, str]

    def plan(self, further: Sequence[str] = (), gpus: int | None = None) -> Plan:
        """Make the plan, optionally with ``further`` overrides or on other ``gpus``. Raises
        ConfigError."""
        plan = make_plan(
            self.path,
            gpus=gpus or self.gpus,
            overrides=[*self.overrides, *further],
            environ=self.environ,
        )
        return with_size(plan, self._vocabulary) if plan.undetermined else plan

    @cached_property
    def _vocabulary(self) -> int | UserError:
        """The number of token ids of the data, which is read once for all plans."""
        plan = make_plan(self.path, gpus=self.gpus, overrides=self.overrides, environ=self.environ)
        return size_on_this_machine(plan, self.environ)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A change of the request, with its plan and estimate."""

    overrides: tuple[str, ...]
    """The overrides to add to the request's overrides."""
    plan: Plan
    estimate: Estimate

    def command_words(self, plan: Plan) -> str:
        """Return the arguments to append to the command that made ``plan``."""
        gpus = self.plan.layout.gpus
        return " ".join([*self.overrides, *([f"--gpus {gpus}"] * (gpus != plan.layout.gpus))])


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search."""

    fitting: tuple[Alternative, ...] = ()
    """The alternatives that fit, the mildest change first."""
    nearest: tuple[Alternative, ...] = ()
    """If nothing fits: the nearest misses."""
    tried: str = ""
    """If nothing fits: the layouts and changes that were tried, in words."""


def alternatives(
    request: PlanRequest, plan: Plan, gpu_memory: int, *, enough: int, device: DeviceType = "cuda"
) -> SearchResult:
    """Search for the mildest changes, at most ``enough``, that fit in ``gpu_memory`` bytes per GPU.

    A change that contains another change that fits is left out.
    """
    search = Search(request=request, plan=plan, gpu_memory=gpu_memory, device=device)
    chosen: dict[tuple[SearchSpace, KnobSteps], Alternative] = {}
    for space, steps in search.by_cost():
        if len(chosen) == enough:
            break
        if any(space.adds_to(steps, *other) for other in chosen):
            continue
        if (answer := search.fits(space, steps)) is not None:
            chosen[space, steps] = answer
    # Variants that were only tried as the strongest of their kind: used if the budget ran out.
    for space, steps in search.fitting():
        if len(chosen) == enough:
            break
        if any(space.adds_to(steps, *other) for other in chosen):
            continue
        if (answer := search.whole(space, steps)) is not None:
            chosen[space, steps] = answer
    if chosen:
        return SearchResult(fitting=tuple(chosen.values()))
    return SearchResult(nearest=search.nearest(), tried=search.tried())


@dataclass(kw_only=True)
class Search:
    """Tries variants, each at most once, until the budget is used up."""

    request: PlanRequest
    plan: Plan
    gpu_memory: int
    """Bytes per GPU."""
    device: DeviceType
    work: float = MAX_WORK
    """The rest of the budget."""
    sizes: dict[tuple[SearchSpace, KnobSteps], float] = field(default_factory=dict)
    """Bytes of the fullest GPU, by variant tried; infinite if it is not legal."""
    closed: dict[SearchSpace, list[frozenset[int]]] = field(default_factory=dict)
    """Sets of knobs that do not fit, by layout."""

    @cached_property
    def spaces(self) -> list[SearchSpace]:
        return spaces(self.plan, gpus_given=self.request.gpus is not None)

    def by_cost(self) -> Iterator[tuple[SearchSpace, KnobSteps]]:
        """Yield all variants but the plan itself, the cheapest first. A layout's variants are
        listed only when the cost of the layout alone is reached."""
        waiting = [(space.cost, number, (), space) for number, space in enumerate(self.spaces)]
        heap: list[tuple[float, int, KnobSteps, SearchSpace]] = list(waiting)
        heapify(heap)
        listed = set[SearchSpace]()
        while heap and self.work > 0:
            _, number, steps, space = heappop(heap)
            if space in listed:
                if any(steps) or space.cost:
                    yield space, steps
                continue
            listed.add(space)
            everything = frozenset(range(len(space.knobs)))
            if self._is_open(space, everything) or self._is_open(space, everything - {PRECISION}):
                for cost, variant in space.variants():
                    heappush(heap, (cost, number, variant, space))

    def fits(self, space: SearchSpace, steps: KnobSteps) -> Alternative | None:
        """Return the variant if it fits; it is not tried if its kind is closed."""
        turned = frozenset(n for n, step in enumerate(steps) if step)
        # First all knobs, then all but offloading: these close the most variants at once.
        others = frozenset(range(len(KnobValues._fields))) - {PRECISION, OFFLOAD}
        for kind in (turned | others | {OFFLOAD}, turned | others, turned):
            if not self._is_open(space, kind):
                return None
        if self._size(space, steps) > self.gpu_memory:
            return None
        return self.whole(space, steps)

    def whole(self, space: SearchSpace, steps: KnobSteps) -> Alternative | None:
        """Return the variant if its full estimate fits, not only ``_size``."""
        answer = self.alternative(space, steps)
        if answer is None or answer.estimate.fullest.memory.total > self.gpu_memory:
            return None
        return answer

    def fitting(self) -> list[tuple[SearchSpace, KnobSteps]]:
        """Return the variants tried that fit, by cost."""
        fitting = [
            (space.cost_of(steps), number, space, steps)
            for number, ((space, steps), size) in enumerate(self.sizes.items())
            if size <= self.gpu_memory and (any(steps) or space.cost)
        ]
        return [(space, steps) for _, _, space, steps in sorted(fitting, key=lambda one: one[:2])]

    def nearest(self) -> tuple[Alternative, ...]:
        """Return the variants that need the least memory; of variants that need equal memory, only
        the cheapest."""
        smallest: dict[float, tuple[SearchSpace, KnobSteps]] = {}
        for (space, steps), size in self.sizes.items():
            other = smallest.setdefault(size, (space, steps))
            if space.cost_of(steps) < other[0].cost_of(other[1]):
                smallest[size] = space, steps
        nearest = [self.alternative(*smallest[size]) for size in sorted(smallest)[:NEAREST]]
        return tuple(one for one in nearest if one is not None)

    def tried(self) -> str:
        """Describe the layouts and knobs that were tried."""
        legal = {space for (space, _), size in self.sizes.items() if size < float("inf")}
        if not legal:
            return "no other layout or setting is legal"
        gpus = [space.layout.gpus for space in legal]
        fewest, most = min(gpus), max(gpus)
        counts = f"{fewest} to " * (fewest != most) + plural(most, "GPU")
        least = min(min(space.knobs.micro_batch) for space in legal)
        ways = [f"micro-batches down to {plural(least, 'sample')}"]
        for name, words in KNOB_NAMES.items():
            if any(len(getattr(space.knobs, name)) > 1 for space in legal):
                ways.append(words)
        layouts = plural(len(legal), "layout")
        rest = "" if self.work > 0 else f" (of {len(self.spaces)}: the search reached its limit)"
        return f"tried: {layouts}{rest} on {counts}, {', '.join(ways)}"

    def _is_open(self, space: SearchSpace, turned: frozenset[int]) -> bool:
        """Return whether the variant of least memory that changes only the ``turned`` knobs
        fits."""
        for other in self.closed.get(space, ()):
            # A smaller precision may need more memory in total, because of the casts.
            if turned <= other and (PRECISION in turned) == (PRECISION in other):
                return False
        fits = self._size(space, space.strongest(turned)) <= self.gpu_memory
        if not fits:
            self.closed.setdefault(space, []).append(turned)
        return fits

    def _size(self, space: SearchSpace, steps: KnobSteps) -> float:
        """Return the bytes of the fullest GPU, or slightly less (``shortened``); infinite if the
        variant is not legal."""
        key = space, steps
        if key not in self.sizes:
            self.sizes[key] = float("inf")
            plan = self._plan(space, steps)
            if plan is not None:
                brief = shortened(plan)
                self.work -= _work(brief)
                total = estimate(brief, device=self.device).fullest.memory.total
                self.sizes[key] = float(total)
        return self.sizes[key]

    def _plan(self, space: SearchSpace, steps: KnobSteps) -> Plan | None:
        self.work -= PLAN
        try:
            return self.request.plan(space.overrides(steps), space.layout.gpus)
        except ConfigError:
            return None

    def alternative(self, space: SearchSpace, steps: KnobSteps) -> Alternative | None:
        """Return the variant with its full estimate, None if it is not legal."""
        plan = self._plan(space, steps)
        if plan is None:
            return None
        self.work -= _work(plan)
        overrides = space.overrides(steps)
        predicted = estimate(plan, device=self.device)
        return Alternative(overrides=overrides, plan=plan, estimate=predicted)


KNOB_NAMES = {
    "checkpoint": "activation checkpointing",
    "schedule": "schedule=1f1b",
    "precision": "a smaller precision",
    "zero": "ZeRO up to stage 3",
    "offload": "offloading to the host",
    "micro_batches": "fewer samples",
}

PLAN, ESTIMATE, LAYER, ACTION = 2.0, 2.0, 0.1, 0.01  # milliseconds


def _work(plan: Plan) -> float:
    """Return the nominal milliseconds of an estimate."""
    settings = plan.settings
    actions = settings.num_micro_batches * settings.gradient_accumulation * plan.layout.pipeline
    return ESTIMATE + LAYER * settings.model.n_layer + ACTION * actions


def shortened(plan: Plan) -> Plan:
    """Return the plan with only as many micro-batches as determine its memory.

    In 1F1B a rank stores the activations of at most as many micro-batches as there are stages
    (Narayanan et al. 2021, section 2.1); only the token ids grow with the micro-batches. So the
    estimate equals the whole plan's or is slightly less, and is much faster to compute.
    """
    settings, stages = plan.settings, plan.layout.pipeline
    if settings.schedule != "1f1b" and stages > 1:
        return plan
    enough = min(stages + 2, settings.num_micro_batches * settings.gradient_accumulation)
    shorter = {
        "num_micro_batches": enough,
        "batch_size": enough * plan.micro_batch,
        "gradient_accumulation": 1,
    }
    return replace(plan, settings=settings.model_copy(update=shorter))
