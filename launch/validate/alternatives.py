"""A search for overrides that make a config fit, each tried as a whole plan with its estimate.

The search is best first: candidates come by how little they change (launch/validate/candidates.py).
Before one is tried, the strongest of its kind is: where not even that fits, none of its kind does,
as each of their knobs only takes memory away (but for the precision, whose two values are two
kinds). So a layout is closed by few tries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from pathlib import Path

from engine.errors import ConfigError
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.estimate.result import Estimate
from engine.formatting import plural
from engine.plan import Plan, make_plan
from launch.validate.candidates import OFFLOAD, PRECISION, Knobs, KnobSteps, Space, spaces

MAX_WORK = 800.0
"""Milliseconds, about, that the plans and estimates of a search take on a machine of 2025. Not
measured as they are made, so that an answer never depends on the speed of the machine."""
NEAREST = 3
"""Misses that are reported where nothing fits."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
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

    def command_words(self, plan: Plan) -> str:
        """What to type behind a command that made ``plan``."""
        gpus = self.plan.layout.gpus
        return " ".join([*self.overrides, *([f"--gpus {gpus}"] * (gpus != plan.layout.gpus))])


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a search: what fits, the mildest change first; where nothing does, the nearest
    misses, and a sentence about all that was tried."""

    fitting: tuple[Alternative, ...] = ()
    nearest: tuple[Alternative, ...] = ()
    tried: str = ""


def alternatives(
    request: PlanRequest, plan: Plan, gpu_memory: int, *, enough: int, device: DeviceType = "cuda"
) -> Findings:
    """Search for the mildest changes that fit into ``gpu_memory`` bytes a GPU, at most ``enough``.

    A change that only adds to another one that fits is left out.
    """
    search = Search(request=request, plan=plan, gpu_memory=gpu_memory, device=device)
    found: dict[tuple[Space, KnobSteps], Alternative] = {}
    for space, steps in search.by_cost():
        if len(found) == enough:
            break
        if any(space.adds_to(steps, *other) for other in found):
            continue
        if (answer := search.fits(space, steps)) is not None:
            found[space, steps] = answer
    for space, steps in search.fitting():  # of no use before the work was used up
        if len(found) == enough:
            break
        if any(space.adds_to(steps, *other) for other in found):
            continue
        if (answer := search.whole(space, steps)) is not None:
            found[space, steps] = answer
    if found:
        return Findings(fitting=tuple(found.values()))
    return Findings(nearest=search.nearest(), tried=search.tried())


@dataclass(kw_only=True)
class Search:
    """Tries candidates, each once, until ``work`` is used up."""

    request: PlanRequest
    plan: Plan
    gpu_memory: int
    device: DeviceType
    work: float = MAX_WORK
    sizes: dict[tuple[Space, KnobSteps], float] = field(default_factory=dict)
    closed: dict[Space, list[frozenset[int]]] = field(default_factory=dict)

    @cached_property
    def spaces(self) -> list[Space]:
        return spaces(self.plan, gpus_given=self.request.gpus is not None)

    def by_cost(self) -> Iterator[tuple[Space, KnobSteps]]:
        """All candidates but the plan itself, by cost. Those of a layout are listed when the layout
        itself is up."""
        waiting = [(space.cost, number, (), space) for number, space in enumerate(self.spaces)]
        heap: list[tuple[float, int, KnobSteps, Space]] = list(waiting)
        heapify(heap)
        listed = set[Space]()
        while heap and self.work > 0:
            _, number, steps, space = heappop(heap)
            if space in listed:
                if any(steps) or space.cost:
                    yield space, steps
                continue
            listed.add(space)
            everything = frozenset(range(len(space.knobs)))
            if self._is_open(space, everything) or self._is_open(space, everything - {PRECISION}):
                for cost, candidate in space.candidates():
                    heappush(heap, (cost, number, candidate, space))

    def fits(self, space: Space, steps: KnobSteps) -> Alternative | None:
        """The candidate, if it fits; without a try where its kind is closed."""
        turned = frozenset(n for n, step in enumerate(steps) if step)
        # First all that can be changed, then all but offloading: they close the most at once.
        others = frozenset(range(len(Knobs._fields))) - {PRECISION, OFFLOAD}
        for kind in (turned | others | {OFFLOAD}, turned | others, turned):
            if not self._is_open(space, kind):
                return None
        if self._size(space, steps) > self.gpu_memory:
            return None
        return self.whole(space, steps)

    def whole(self, space: Space, steps: KnobSteps) -> Alternative | None:
        """The candidate, if it fits by its whole estimate, not only by ``_size``."""
        answer = self.alternative(space, steps)
        if answer is None or answer.estimate.fullest.memory.total > self.gpu_memory:
            return None
        return answer

    def fitting(self) -> list[tuple[Space, KnobSteps]]:
        """All that fits of what was tried, by cost."""
        found = [
            (space.cost_of(steps), number, space, steps)
            for number, ((space, steps), size) in enumerate(self.sizes.items())
            if size <= self.gpu_memory and (any(steps) or space.cost)
        ]
        return [(space, steps) for _, _, space, steps in sorted(found, key=lambda one: one[:2])]

    def nearest(self) -> tuple[Alternative, ...]:
        """The smallest of all that was tried, each size once."""
        smallest: dict[float, tuple[Space, KnobSteps]] = {}
        for (space, steps), size in self.sizes.items():
            other = smallest.setdefault(size, (space, steps))
            if space.cost_of(steps) < other[0].cost_of(other[1]):
                smallest[size] = space, steps
        found = [self.alternative(*smallest[size]) for size in sorted(smallest)[:NEAREST]]
        return tuple(one for one in found if one is not None)

    def tried(self) -> str:
        """The layouts and knobs that were tried, in words."""
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
        rest = "" if self.work > 0 else f" (of {len(self.spaces)}: the search was ended)"
        return f"tried: {layouts}{rest} on {counts}, {', '.join(ways)}"

    def _is_open(self, space: Space, turned: frozenset[int]) -> bool:
        """Whether the strongest candidate that changes the ``turned`` knobs fits."""
        for other in self.closed.get(space, ()):
            # Casts take memory, so a smaller precision may take more in all
            if turned <= other and (PRECISION in turned) == (PRECISION in other):
                return False
        fits = self._size(space, space.strongest(turned)) <= self.gpu_memory
        if not fits:
            self.closed.setdefault(space, []).append(turned)
        return fits

    def _size(self, space: Space, steps: KnobSteps) -> float:
        """Bytes of the fullest GPU, or a little less; endless where the candidate is not legal."""
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

    def _plan(self, space: Space, steps: KnobSteps) -> Plan | None:
        self.work -= PLAN
        try:
            return self.request.plan(space.overrides(steps), space.layout.gpus)
        except ConfigError:
            return None

    def alternative(self, space: Space, steps: KnobSteps) -> Alternative | None:
        """The candidate with its whole estimate; None where it is not legal."""
        plan = self._plan(space, steps)
        if plan is None:
            return None
        self.work -= _work(plan)
        overrides = space.overrides(steps)
        found = estimate(plan, device=self.device)
        return Alternative(overrides=overrides, plan=plan, estimate=found)


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
    """How long an estimate takes, about."""
    settings = plan.settings
    actions = settings.num_micro_batches * settings.gradient_accumulation * plan.layout.pipeline
    return ESTIMATE + LAYER * settings.model.n_layer + ACTION * actions


def shortened(plan: Plan) -> Plan:
    """The plan with no more micro-batches than show its memory: in 1F1B a rank holds those of p
    stages at most (Narayanan et al. 2021, section 2.1), whatever their number; ids aside. So
    the estimate is that of the plan, or a little less, and far sooner made."""
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
