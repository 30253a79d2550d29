"""Rules for pipeline parallelism: stages, chunks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples
from engine.pipeline.schedule import PipelineShape, ideal_bubble

if TYPE_CHECKING:
    from engine.config.schema import Settings

MAX_BUBBLE = 0.25  # of a step; more is worth a warning


def every_chunk_has_a_layer(context: RuleContext) -> Iterator[Finding]:
    """Require model.n_layer to be at least PIPELINE x model.num_chunks; warn if it is not a
    multiple."""
    model, stages = context.settings.model, context.settings.pipeline
    chunks = stages * model.num_chunks
    if stages == 1:
        return
    product = f"{context.cite('pipeline')} x {context.cite('model.num_chunks')} = {chunks}"
    if model.n_layer < chunks:
        yield context.error(
            "pipeline",
            f"{context.cite('model.n_layer')} is less than {product}, the number of model chunks; "
            f"use at most {model.n_layer} chunks, or more layers",
        )
    elif model.n_layer % chunks:
        few = model.n_layer // chunks
        yield context.warning(
            "pipeline",
            f"{context.cite('model.n_layer')} is not a multiple of {product}: model chunks have "
            f"{few} or {few + 1} layers, and the larger ones limit the speed; nearest: "
            f"{nearest_multiples(model.n_layer, chunks)}",
        )


def chunks_need_the_interleaved_schedule(context: RuleContext) -> Iterator[Finding]:
    """Require schedule='interleaved' if model.num_chunks is more than 1, and another schedule if it
    is 1."""
    settings = context.settings
    if settings.pipeline == 1:
        return
    if (settings.model.num_chunks > 1) != (settings.schedule == "interleaved"):
        yield context.error(
            "schedule" if context.is_stated("schedule") else "model.num_chunks",
            f"{context.cite('model.num_chunks')} is not possible with {context.cite('schedule')}; "
            "use schedule='interleaved' with model.num_chunks of 2 or more, or another schedule "
            "with model.num_chunks=1",
        )


def interleaving_needs_rounds(context: RuleContext) -> Iterator[Finding]:
    """Require NUM_MICRO_BATCHES to be a multiple of PIPELINE for the interleaved schedule.

    It runs micro-batches in rounds of PIPELINE (Narayanan et al. 2021).
    """
    settings = context.settings
    stages, micro_batches = settings.pipeline, settings.num_micro_batches
    if stages > 1 and settings.schedule == "interleaved" and micro_batches % stages:
        yield context.error(
            "num_micro_batches",
            f"{context.cite('num_micro_batches')} is not a multiple of "
            f"{context.cite('pipeline')}, which the interleaved schedule needs; "
            f"nearest: {nearest_multiples(micro_batches, stages)}",
        )


def micro_batches_fill_the_pipeline(context: RuleContext) -> Iterator[Finding]:
    """Warn if pipeline ranks are idle for more than MAX_BUBBLE of a step."""
    settings, rounds = context.settings, context.settings.gradient_accumulation
    bubble = _bubble(settings, settings.num_micro_batches)
    if bubble <= MAX_BUBBLE:
        return
    counts = count(settings.pipeline, settings.pipeline)
    enough = next(n for n in counts if _bubble(settings, n) <= MAX_BUBBLE)
    stated = context.cite("num_micro_batches")
    if rounds > 1:
        stated += f" with {context.cite('gradient_accumulation')}"
    yield context.warning(
        "num_micro_batches",
        f"{stated} leaves the ranks of {context.cite('pipeline')} idle for {bubble:.0%} of a step "
        f"(the pipeline bubble); {enough} would leave {_bubble(settings, enough):.0%}",
    )


def _bubble(settings: Settings, micro_batches: int) -> float:
    """Return the bubble of a step with ``micro_batches`` in each accumulation round. The schedule
    runs all rounds without a break."""
    shape = PipelineShape(
        ranks=settings.pipeline,
        micro_batches=micro_batches * settings.gradient_accumulation,
        chunks=settings.model.num_chunks,
    )
    return ideal_bubble(settings.schedule, shape)


def chunks_need_a_pipeline(context: RuleContext) -> Iterator[Finding]:
    """Note that model.num_chunks has no effect without a pipeline."""
    if context.settings.pipeline == 1 and context.settings.model.num_chunks > 1:
        yield context.note(
            "model.num_chunks",
            f"{context.cite('model.num_chunks')} has no effect with {context.cite('pipeline')}",
        )


RULES = (
    every_chunk_has_a_layer,
    chunks_need_the_interleaved_schedule,
    interleaving_needs_rounds,
    micro_batches_fill_the_pipeline,
    chunks_need_a_pipeline,
)
