"""The variants of a plan on one layout: other values of the settings that determine memory, each
with a cost, which measures how much it changes.

The model is unchanged, and so are the samples of a step if GLOBAL_BATCH_SIZE is set. Otherwise GPUs
that are added to the data axis and a change of ``micro_batches`` change the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

from engine.layout import Layout
from engine.plan import Plan

STEP = 0.1
"""Cost of each further step of a changed setting; the change itself costs 1."""
SURCHARGE = {"precision": 0.5, "micro_batches": 4.0, "offload": 8.0}
"""Additional cost of these changes: rounding differs, a step has fewer samples, a step is slow."""

CheckpointChoice = bool | Literal["selective"]
OffloadChoice = tuple[str | None, str | None]  # of the states, of the parameters
ZeroChoice = tuple[int, bool]  # the stage, and zero.depth
OFFLOADS: Sequence[OffloadChoice] = [(None, None), ("cpu", None), ("cpu", "cpu")]

KnobSteps = tuple[int, ...]
"""Index of each knob's value; 0 is the plan's value, or the nearest that the layout allows."""


class KnobValues(NamedTuple):
    """The values of each setting but the layout, ordered by memory, largest first."""

    checkpoint: Sequence[CheckpointChoice]
    micro_batch: Sequence[int]  # samples
    schedule: Sequence[str]
    precision: Sequence[str]
    zero: Sequence[ZeroChoice]
    offload: Sequence[OffloadChoice]
    micro_batches: Sequence[int | None]  # None: the whole batch


PRECISION, ZERO, OFFLOAD = map(KnobValues._fields.index, ("precision", "zero", "offload"))


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchSpace:
    """All variants of a plan on one layout."""

    plan: Plan
    """The user's plan."""
    layout: Layout
    cost: float
    """The cost of the layout alone."""
    batch_size: int
    """Samples of a data-parallel rank."""
    knobs: KnobValues

    def variants(self) -> list[tuple[float, KnobSteps]]:
        """Return all legal combinations by cost, which is mainly the number of changed settings."""
        ranges = (range(len(values)) for values in self.knobs)
        legal = [(self.cost_of(steps), steps) for steps in product(*ranges) if self.is_legal(steps)]
        return sorted(legal)

    def strongest(self, turned: frozenset[int]) -> KnobSteps:
        """Return the combination of least memory that changes only the ``turned`` knobs."""
        steps = [len(values) - 1 if n in turned else 0 for n, values in enumerate(self.knobs)]
        while steps[OFFLOAD] and not self.is_legal(tuple(steps)):
            steps[OFFLOAD] -= 1
        if not self.is_legal(tuple(steps)):
            steps[ZERO] = 0  # nothing to share out
        return tuple(steps)

    def value(self, knob: str, steps: KnobSteps) -> Any:
        number = KnobValues._fields.index(knob)
        return self.knobs[number][steps[number]]

    def micro_batch_count(self, steps: KnobSteps) -> int:
        """Return NUM_MICRO_BATCHES of a variant."""
        whole: int = self.batch_size // self.value("micro_batch", steps)
        return min(whole, self.value("micro_batches", steps) or whole)

    @property
    def _unchanged_batch_size(self) -> int:
        """BATCH_SIZE on this layout without an override."""
        settings = self.plan.settings
        return self.batch_size if settings.global_batch_size else settings.batch_size

    def overrides(self, steps: KnobSteps) -> tuple[str, ...]:
        """Return the settings in which a variant differs from the plan."""
        settings, layout = self.plan.settings, self.layout
        offload, offload_params = self.value("offload", steps)
        stage, over_depth = self.value("zero", steps)
        schedule, count = self.value("schedule", steps), self.micro_batch_count(steps)
        chunks = settings.model.num_chunks if schedule == "interleaved" else 1
        if layout.pipeline == 1:
            schedule, chunks = settings.schedule, settings.model.num_chunks
        pairs: list[tuple[str, object, object]] = [
            ("TENSOR_PARALLEL", layout.tensor, settings.tensor_parallel),
            ("MODE", layout.mode.name, settings.mode),
            ("DEPTH", layout.depth, settings.depth),
            ("PIPELINE", layout.pipeline, settings.pipeline),
            ("BATCH_SIZE", count * self.value("micro_batch", steps), self._unchanged_batch_size),
            ("NUM_MICRO_BATCHES", count, settings.num_micro_batches),
            ("schedule", schedule, settings.schedule),
            ("model.num_chunks", chunks, settings.model.num_chunks),
            ("model.checkpoint", self.value("checkpoint", steps), settings.model.checkpoint),
            ("precision", self.value("precision", steps), settings.precision),
            ("zero.stage", stage, settings.zero.stage),
            ("zero.depth", over_depth, settings.zero.depth),
            ("zero.offload", offload, settings.zero.offload),
            ("zero.offload_params", offload_params, settings.zero.offload_params),
        ]
        return tuple(f"{name}={value}" for name, value, now in pairs if value != now)

    def adds_to(self, steps: KnobSteps, other: SearchSpace, others: KnobSteps) -> bool:
        """Return whether a variant contains another one: it changes every setting that the other
        changes, at least as far."""
        mine, theirs, planned = self.layout, other.layout, self.plan.layout
        farther = (
            (mine.mode is theirs.mode or theirs.mode is planned.mode or theirs.tensor == 1)
            and (mine.tensor >= theirs.tensor and mine.pipeline >= theirs.pipeline)
            and mine.gpus >= theirs.gpus
        )
        return (farther or other.cost == 0) and all(map(int.__ge__, steps, others))

    def cost_of(self, steps: KnobSteps) -> float:
        return self.cost + sum(
            1 + STEP * (step - 1) + SURCHARGE.get(knob, 0)
            for knob, step in zip(KnobValues._fields, steps, strict=True)
            if step
        )

    def is_legal(self, steps: KnobSteps) -> bool:
        """Return whether offloading has the ZeRO stage it needs, and ZeRO something to shard or to
        offload."""
        (stage, over_depth), offload = self.value("zero", steps), self.value("offload", steps)
        needed = 3 if offload[1] else 1 if offload[0] else 0
        sharing = self.layout.data * (copies_of_weights(self.layout) if over_depth else 1)
        return stage >= needed and not (steps[ZERO] and sharing == 1 and offload == (None, None))


def copies_of_weights(layout: Layout) -> int:
    """Return the number of tensor-parallel ranks that hold the same weights."""
    return layout.num_shards(layout.mode.replicated)
